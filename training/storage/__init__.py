"""A run on disk: its folder, atomic checkpoints, counters, and strict readers of its files."""
