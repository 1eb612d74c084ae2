"""Pairs of texts, from files or generated, and batches of them."""
