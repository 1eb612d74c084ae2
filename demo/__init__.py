"""The Gradio page: text that streams next to a chart of what a token costs."""

from training.threads import let_waiting_threads_sleep

let_waiting_threads_sleep()
