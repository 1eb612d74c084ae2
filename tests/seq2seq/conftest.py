"""Fixtures of this suite."""

from seq2seq_models import model  # noqa: F401
from small_tokenizer import small_tokenizer  # noqa: F401
