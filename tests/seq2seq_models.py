"""Small encoder-decoders that several tests look at."""

from typing import Any

import pytest
import torch

from data.config import PairConfig
from seq2seq.config import ModelConfig, Seq2SeqConfig
from seq2seq.model import EncoderDecoder
from training.config.sections import OptimizerConfig, ScheduleConfig, TrainingConfig

POSITIONS = [
    {"positions": "sinusoidal", "cross_positions": "content"},
    {"positions": "learned", "cross_positions": "content"},
    {"positions": "rotary", "cross_positions": "content"},
    {"positions": "rotary", "cross_positions": "start"},
    {"positions": "rotary", "cross_positions": "both_ends"},
    {
        "positions": "rotary",
        "cross_positions": "both_ends",
        "num_kv_heads": 2,
        "qk_norm": False,
        "tie_embeddings": True,
    },
]
OTHER_SHAPES: list[dict[str, Any]] = [
    {
        "positions": "learned",
        "cross_positions": "content",
        "qk_norm": False,
        "norm": "layer",
        "activation": "gelu",
        "attention_bias": True,
        "feed_forward_bias": True,
        "head_dim": 10,
        "embedding_scale": 1.0,
    },
    {"positions": "rotary", "cross_positions": "start", "num_kv_heads": 1, "rope_scaling": "linear:2", "norm_eps": 0.1},
]


def random_model(vocab_size: int = 9, **changes: Any) -> EncoderDecoder:
    """A small model none of whose weights is zero, so that no part of it is idle."""
    options = {"num_layers": 2, "d_model": 24, "num_heads": 4, "d_ff": 32, "max_len": 24} | changes
    model = EncoderDecoder(ModelConfig(**options), vocab_size).eval()
    drawn = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 1.5 * model.config.d_model**-0.5, generator=drawn).add_(0.01)
    return model


@pytest.fixture(params=POSITIONS, ids=lambda options: " ".join(map(str, options.values())))
def model(request: pytest.FixtureRequest) -> EncoderDecoder:
    """A model for each kind of positions."""
    return random_model(**request.param)


def small_config() -> Seq2SeqConfig:
    """A run of seconds: copy 1 to 3 of 8 symbols, without dropout."""
    return Seq2SeqConfig(
        name="small",
        tracking="none",
        model=ModelConfig(num_layers=1, d_model=32, num_heads=4, d_ff=48, max_len=16),
        data=PairConfig(symbols="abcdefgh", max_length=3, val_samples=50),
        training=TrainingConfig(
            max_steps=12, batch_size=16, precision="fp32", eval_interval=5, log_interval=1, checkpoint_interval=4
        ),
        optimizer=OptimizerConfig(name="muon", learning_rate=5e-3),
        schedule=ScheduleConfig(name="linear", warmup_steps=2),
    )
