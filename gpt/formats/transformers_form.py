"""What a GPT is called in transformers: which of its models computes the same, its configuration and its weights.

With rotary positions, RMSNorm and SwiGLU it is Llama (Touvron et al. 2023), or Qwen3 (Yang et al. 2025) where queries
and keys are normalised; with learned positions, LayerNorm and GELU it is GPT-2 (Radford et al. 2019). What we multiply
embeddings by, they do not: the scale goes into their embedding, and the head, which is without it, then has weights of
its own even where ours is tied. Knows torch, and no transformers.

Shapes: V vocabulary, M model size.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gpt.config import ModelConfig
from gpt.formats.transformers_names import GPT2, GPT2_MATRICES, GPT2_NORMS, LLAMA, LLAMA_BLOCK
from gpt.model import GPT
from training.publishing.parts import foreign_part
from training.runtime.errors import InputError

_SCALINGS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""What the numbers of `rope_scaling` are called there."""


def check_form(model: GPT) -> None:
    """Raise an `InputError` unless transformers has a model that computes the same.

    So are refused other positions, fields that no such model has, and models with parts of their own.
    """
    config = model.config
    if config.positions == "sinusoidal":
        raise _refusal(config, "one trained with --model.positions rotary")
    wanted = _gpt2_wants(config) if config.positions == "learned" else _llama_wants(config)
    faults = [f"--model.{name} {value}" for name, value in wanted.items()]
    if faults:
        other = ", or --model.positions rotary" if config.positions == "learned" else ""
        raise _refusal(config, f"{' and '.join(faults)}{other}")
    with torch.device("meta"):
        plain = GPT(config, model.vocab_size)
    if part := foreign_part(model, plain):
        raise InputError(f"transformers has no equivalent of this {type(model).__name__}: it is no GPT in {part}")


def _refusal(config: ModelConfig, expected: str) -> InputError:
    return InputError(f"transformers has no model like ours with {config.positions} positions: expected {expected}")


def _llama_wants(config: ModelConfig) -> dict[str, str]:
    """Fields that neither Llama nor Qwen3 has so, with what they have in words."""
    wanted = {"norm": "rms", "activation": "swiglu"}
    found = {name: value for name, value in wanted.items() if getattr(config, name) != value}
    if config.qk_norm and config.feed_forward_bias:
        found["feed_forward_bias"] = "false, with model.qk_norm (Qwen3)"
    if not config.qk_norm and config.d_model % config.num_heads:
        found["d_model"] = f"a multiple of model.num_heads ({config.num_heads}), without model.qk_norm (Llama)"
    return found


def _gpt2_wants(config: ModelConfig) -> dict[str, str]:
    """Fields that GPT-2 has otherwise, with what it has in words."""
    found = {} if config.norm == "layer" else {"norm": "layer"}
    found |= {"activation": "gelu or gelu_tanh"} if config.activation == "swiglu" else {}
    found |= {"qk_norm": "false"} if config.qk_norm else {}
    found |= {} if config.kv_heads == config.num_heads else {"num_kv_heads": "null"}
    return found | ({} if config.head_size * config.num_heads == config.d_model else {"head_dim": "null"})


def form_config(model: GPT, end_of_text: int | None, dtype: torch.dtype) -> dict[str, Any]:
    """The content of config.json; what is not named there, such as dropout, is off by its defaults or here.

    Args:
        model: One with such a form; see `check_form`.
        end_of_text: The token that ends a text; None for a vocabulary without.
        dtype: Of the weights.
    """
    config = model.config
    options = _gpt2_options(config) if config.positions == "learned" else _llama_options(config)
    return {
        **options,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": has_tied_form(model),
        "dtype": str(dtype).removeprefix("torch."),
        "bos_token_id": None,
        "eos_token_id": end_of_text,
        "pad_token_id": None,
    }


def _llama_options(config: ModelConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        kind, *numbers = config.rope_scaling.split(":")
        rope = {"rope_type": kind, **dict(zip(_SCALINGS[kind], map(_number, numbers), strict=True))}
    return {
        "architectures": ["Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if config.qk_norm else "llama",
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_len,
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.attention_bias,
        **({} if config.qk_norm else {"mlp_bias": config.feed_forward_bias}),
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
        # What readers before transformers 5 call them.
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else rope,
    }


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text)


def _gpt2_options(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": config.d_model,
        "n_inner": config.d_ff,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.max_len,
        "activation_function": "gelu" if config.activation == "gelu" else "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    }


def has_tied_form(model: GPT) -> bool:
    """Whether the head has no weights of its own there."""
    return model.head is None and model.embedding_scale == 1


@torch.no_grad()
def form_weights(model: GPT) -> dict[str, Tensor]:
    """All weights under the names of transformers; where nothing has to be done to one, in the memory of the model."""
    weights = dict(model.state_dict())
    if model.head is None and not has_tied_form(model):
        weights["head.weight"] = model.embedding.weight.detach()
    if model.embedding_scale != 1:
        weights["embedding.weight"] = weights["embedding.weight"] * model.embedding_scale
    return _gpt2_weights(model.config, weights) if model.config.positions == "learned" else _llama_weights(weights)


def _llama_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")
        if module in LLAMA:
            named[f"{LLAMA[module]}.{kind}"] = tensor
        else:
            _, index, part = module.split(".", 2)
            named[f"model.layers.{index}.{LLAMA_BLOCK[part]}.{kind}"] = tensor
    return named


def _gpt2_weights(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2 keeps matrices the other way round, those of queries, keys and values as one, and has every bias."""
    named = {f"{theirs}.{kind}": tensor for ours, theirs in GPT2.items() for kind, tensor in _of(weights, ours).items()}
    for index in range(config.num_layers):
        ours, theirs = f"blocks.{index}", f"transformer.h.{index}"
        for part, name in GPT2_NORMS.items():
            named |= {f"{theirs}.{name}.{kind}": tensor for kind, tensor in _of(weights, f"{ours}.{part}").items()}
        for parts, name in GPT2_MATRICES.items():
            each = [_of(weights, f"{ours}.{part}") for part in parts]
            tensors = {kind: torch.cat([own[kind] for own in each]) for kind in each[0]}
            weight = tensors["weight"]
            named[f"{theirs}.{name}.weight"] = weight.T.contiguous()
            named[f"{theirs}.{name}.bias"] = tensors.get("bias", weight.new_zeros(len(weight)))
    return named


def _of(weights: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    """Weight and bias of a module, as far as it has them."""
    found = ((kind, weights.get(f"{module}.{kind}")) for kind in ("weight", "bias"))
    return {kind: tensor for kind, tensor in found if tensor is not None}
