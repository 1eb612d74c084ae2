"""Rows with answers: what a model is to write, and windows of several of them."""
