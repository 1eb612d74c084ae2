"""Which windows of a text make a batch, and in which order they come."""
