"""Fixtures of this suite."""

from small_tokenizer import small_tokenizer  # noqa: F401
