"""Our GPT as a model of Hugging Face transformers, for whoever wants its tools, or wants to compare.

A GPT with rotary positions is what transformers calls Llama (Touvron et al. 2023), or Qwen3 (Yang et al. 2025) where it
normalises queries and keys. One thing has to be moved: we multiply embeddings by sqrt(M) in `GPT.forward`, they do not.
The scale goes into their embedding, and so the head, which is without it, has its own weights even where ours is tied.

The two differ by rounding alone: with 6 layers in fp32, over 2,048 tokens, by less than 1e-6 of the largest logit.

Shapes: V vocabulary, M model size.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gpt.model import GPT
from training.runtime.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROTARY_BASE = 10_000.0
"""The default of `RotaryPositions`, which a GPT has."""

_TOP = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}


def to_transformers(model: GPT, end_of_text: int | None = None) -> "PreTrainedModel":
    """Copy a GPT into the model of transformers that computes the same logits.

    Its tokens are ours: of a byte-level BPE the tokenizer.json of a checkpoint is what transformers reads.

    Args:
        model: With rotary positions; it is left as it is.
        end_of_text: The token that ends what it generates; None for nothing but a length.

    Returns:
        A `LlamaForCausalLM`, or a `Qwen3ForCausalLM` for a model with query-key norm: in evaluation mode, on the device
        and in the dtype of `model`, without other special tokens.

    Raises:
        InputError: transformers is not installed or has no equivalent of the model.
    """
    _check(model)
    try:
        from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
    except ImportError as error:
        raise InputError("this needs the package transformers: pip install transformers") from error
    options = _options(model) | {"eos_token_id": end_of_text}
    # It is built with weights drawn at random, which are then replaced: no draw of ours may move by that.
    with torch.random.fork_rng(devices=[]):
        theirs: Any = (
            Qwen3ForCausalLM(Qwen3Config(**options))
            if model.config.qk_norm
            else LlamaForCausalLM(LlamaConfig(**options))
        )
    theirs.load_state_dict(_weights(model), assign=True)
    return theirs.to(model.embedding.weight.device).eval()


def _check(model: GPT) -> None:
    """Refuse what would be loaded wrongly: other positions, and models with parts of their own."""
    if model.config.positions != "rotary":
        raise InputError(
            f"transformers has no model like ours with {model.config.positions} positions: "
            "expected one trained with --model.positions rotary"
        )
    with torch.device("meta"):
        plain = GPT(model.config, model.vocab_size)
    if different := {name for name, _ in _parts(model) ^ _parts(plain)}:
        part = min(different - {""}, default="its class")
        raise InputError(f"transformers has no equivalent of this {type(model).__name__}: it is no GPT in {part}")


def _parts(model: GPT) -> set[tuple[str, object]]:
    """Names of all modules with their classes, and of all weights with their shapes."""
    modules = {(name, type(module)) for name, module in model.named_modules()}
    return modules | {(name, tensor.shape) for name, tensor in model.state_dict().items()}


def _options(model: GPT) -> dict[str, Any]:
    """What their configuration takes; what is not named here, such as biases and dropout, is off by default."""
    config = model.config
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads or config.num_heads,
        "head_dim": config.d_model // config.num_heads,
        "max_position_embeddings": config.max_len,
        "rms_norm_eps": model.norm.eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
        "tie_word_embeddings": False,
        "dtype": model.embedding.weight.dtype,
        "attn_implementation": "sdpa",
        # Without an end token, generation never stops early.
        **dict.fromkeys(("bos_token_id", "pad_token_id")),
    }


@torch.no_grad()
def _weights(model: GPT) -> dict[str, Tensor]:
    """Copies of all weights, under the names of transformers."""
    weights = {_their_name(name): tensor.clone() for name, tensor in model.state_dict().items()}
    if model.head is None:
        weights["lm_head.weight"] = model.embedding.weight.clone()
    weights["model.embed_tokens.weight"] *= math.sqrt(model.config.d_model)
    return weights


def _their_name(name: str) -> str:
    module = name.removesuffix(".weight")
    if module in _TOP:
        return f"{_TOP[module]}.weight"
    _, index, part = module.split(".", 2)
    return f"model.layers.{index}.{_BLOCK[part]}.weight"
