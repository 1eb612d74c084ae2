"""The Gradio page: text that streams next to a chart of what a token costs."""

from demo.proxies import leave_out_socks

leave_out_socks()
