"""The runs of a folder: what is there, and how to hand one on or remove it."""
