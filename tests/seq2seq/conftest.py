"""Fixtures of this suite."""

from seq2seq_models import model  # noqa: F401
