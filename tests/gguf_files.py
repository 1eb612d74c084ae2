"""GPTs with vocabularies to write as GGUF files."""

from dataclasses import replace
from pathlib import Path

from gpt_models import random_model

from data.tokenizers.byte_tokenizer import ByteTokenizer
from data.tokenizers.tokenizer import Tokenizer
from gpt.config import GPTConfig, ModelConfig
from gpt.formats.gguf import Kind, write_gguf
from gpt.task import LoadedGPT
from training.config.sections import TrainingConfig

LLAMA = ModelConfig(num_layers=2, d_model=64, num_heads=4, d_ff=96, max_len=48, qk_norm=False)
OTHERS = replace(LLAMA, num_kv_heads=2, head_dim=32, rope_theta=5e4, norm_eps=1e-5)
QWEN3 = replace(LLAMA, qk_norm=True, num_kv_heads=2, head_dim=32)
GPT2 = replace(
    replace(LLAMA, d_ff=256, positions="learned", norm="layer", activation="gelu_tanh", norm_eps=1e-5),
    attention_bias=True,
    feed_forward_bias=True,
    embedding_scale=1.0,
    tie_embeddings=True,
)
FORMS = {
    "llama": LLAMA,
    "llama, as others have it": replace(OTHERS, tie_embeddings=True, embedding_scale=1.0),
    "qwen3": QWEN3,
    "gpt2": GPT2,
    "gpt2 without biases": replace(GPT2, attention_bias=False, feed_forward_bias=False, embedding_scale=None),
}
BEYOND = {
    "biases": replace(LLAMA, attention_bias=True, feed_forward_bias=True),
    "linear": replace(LLAMA, rope_scaling="linear:2"),
    "linear with query-key norm": replace(QWEN3, rope_scaling="linear:2.5"),
    "llama3": replace(LLAMA, rope_scaling="llama3:8:1:4:32"),
    "another width": replace(GPT2, d_ff=96),
}
"""What transformers reads from a GGUF file only where it is told so."""


def loaded(config: ModelConfig, tokenizer: Tokenizer | None = None, padding: int = 0) -> LoadedGPT:
    """A GPT of random weights, of bytes unless a tokenizer is given, with tokens beyond it."""
    tokenizer = tokenizer or ByteTokenizer()
    run = GPTConfig(name="small", model=config, training=TrainingConfig(max_steps=1))
    return LoadedGPT(random_model(config, len(tokenizer) + padding), tokenizer, run, "raw", "")


def written(source: LoadedGPT, folder: Path, kind: Kind) -> Path:
    """The file of a GPT, in a folder."""
    file = folder / f"small-{kind}.gguf"
    write_gguf(source, file, kind)
    return file
