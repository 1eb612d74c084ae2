"""Model folders of transformers as they are published, with random weights; whole, or with fewer layers and tokens."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.tokenizers.subwords import BYTE_SYMBOLS, END_OF_TEXT

PUBLISHED: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": 576,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 49152,
    },
    "Qwen3-0.6B": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "model_type": "qwen3",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "GPT-2": {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "vocab_size": 50257,
    },
}
TOKENS = {"SmolLM2-135M": 49_152, "Qwen3-0.6B": 151_669, "GPT-2": 50_257}
"""Of their tokenizers; Qwen3's embedding has more rows than that."""


def write_tokenizer(folder: Path, size: int) -> Path:
    """A byte-level BPE of so many tokens, which merges nothing."""
    words = ("".join(word) for word in product(sorted(BYTE_SYMBOLS), repeat=3))
    vocabulary = [END_OF_TEXT, *sorted(BYTE_SYMBOLS), *(next(words) for _ in range(size - len(BYTE_SYMBOLS) - 1))]
    added = {"id": 0, "content": END_OF_TEXT, "special": True, "normalized": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    content = {
        "version": "1.0",
        "added_tokens": [added],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {word: token for token, word in enumerate(vocabulary)}, "merges": []},
    }
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(content))
    return file


def random_weights(theirs: Any) -> None:
    """Weights none of which is zero or one, such as bf16 has them, by which tokens see each other sharply."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            deviation = 1.5 * parameter.size(-1) ** -0.5 if parameter.ndim > 1 else 0.2
            parameter.normal_(0.0, deviation, generator=generator).add_(0.01)
            if parameter.ndim == 1 and name.endswith("weight"):  # Of a norm.
                parameter.add_(1.0)
            parameter.copy_(parameter.bfloat16())


def write_published(folder: Path, name: str, **changes: Any) -> Any:
    """Write the folder of a published model, and return it, as transformers has it, in fp32.

    Args:
        folder: Where.
        name: In `PUBLISHED`.
        changes: Of its configuration; with another `vocab_size` the tokenizer has some tokens less than that.
    """
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import save_file

    config = PUBLISHED[name] | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, config["vocab_size"] - 7 if "vocab_size" in changes else TOKENS[name])
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(folder), dtype=torch.float32
    ).eval()
    random_weights(theirs)
    tied = config.get("tie_word_embeddings", True)
    weights = {key: value for key, value in theirs.state_dict().items() if not (tied and key == "lm_head.weight")}
    if name == "GPT-2":  # Published without that, and with its masks.
        weights = {key.removeprefix("transformer."): value for key, value in weights.items()}
        for layer in range(config["n_layer"]):
            weights[f"h.{layer}.attn.bias"] = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    save_file(weights if name == "GPT-2" else in_bf16(weights), folder / "model.safetensors", {"format": "pt"})
    return theirs


def in_bf16(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.bfloat16() for name, tensor in weights.items()}
