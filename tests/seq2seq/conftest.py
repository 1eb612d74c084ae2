"""Fixtures of this suite."""

import pytest
from seq2seq_models import POSITIONS, random_model

from seq2seq.model import EncoderDecoder


@pytest.fixture(params=POSITIONS, ids=lambda options: " ".join(map(str, options.values())))
def model(request: pytest.FixtureRequest) -> EncoderDecoder:
    """A model for each kind of positions."""
    return random_model(**request.param)
