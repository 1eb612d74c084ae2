"""The Gradio page: text that streams next to a chart of what a token costs."""
