"""The Gradio page: text that streams next to a chart of what a token costs."""

from demo.proxies import leave_out_socks
from training.runtime.threads import let_waiting_threads_sleep

let_waiting_threads_sleep()
leave_out_socks()
