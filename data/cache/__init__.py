"""Tokens on the disk: a text is looked through once, its tokens are kept, and mapped into memory."""
