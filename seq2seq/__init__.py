"""The encoder-decoder: its model, tasks, training and decoding."""
