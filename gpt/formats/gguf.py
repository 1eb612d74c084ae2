"""A GPT as a file of llama.cpp, in its format GGUF.

With rotary positions it is what llama.cpp calls `llama`, or `qwen3` with query-key norm; with learned ones, `gpt2`.
What we multiply embeddings by goes into the embedding, and the head, which is without it, then has its own weights even
where ours is tied. `llama` rotates columns 2i and 2i + 1 of a query or key where we rotate i and i + D/2, so that the
rows that make them change places.

F32 keeps all bits; F16 and Q8_0 (blocks of 32 whole numbers of 8 bits, each with a factor in fp16) are for matrices:
norms, biases and positions stay in F32, and a matrix whose rows are no multiple of 32 is F16 in Q8_0.

Shapes: D head size.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gpt.config import ModelConfig
from gpt.formats.gguf_vocabulary import GGUFVocabulary, gguf_vocabulary
from gpt.model import GPT
from gpt.task import LoadedGPT
from layers.positions import RotaryPositions
from training.publishing.parts import foreign_part
from training.runtime.errors import InputError
from training.runtime.packages import needed_package

Kind = Literal["F32", "F16", "Q8_0"]
BLOCK = 32
"""Numbers of Q8_0 with one factor."""
MAX_F16 = 65_504.0
_FORMS: dict[str, dict[str, Any]] = {
    "llama": {"norm": "rms", "activation": "swiglu"},
    "qwen3": {"norm": "rms", "activation": "swiglu", "attention_bias": False, "feed_forward_bias": False},
    "gpt2": {"norm": "layer", "activation": "gelu_tanh", "qk_norm": False},
}
_TOP = {"embedding": "token_embd", "positions.embedding": "position_embd", "norm": "output_norm", "head": "output"}
_BLOCK = {
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.out": "attn_output",
    "attention.query_norm": "attn_q_norm",
    "attention.key_norm": "attn_k_norm",
    "feed_forward_norm": "ffn_norm",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}


def write_gguf(loaded: LoadedGPT, file: Path, kind: Kind) -> None:
    """Write a trained GPT with its vocabulary.

    Args:
        loaded: From `load_gpt`; it is left as it is.
        file: Where; what is there is overwritten.
        kind: The type of its matrices.

    Raises:
        InputError: The package gguf is not installed, llama.cpp has no such model or vocabulary, the numbers are too
            large for the type, or the disk refuses.
    """
    library = needed_package("gguf", "--format gguf")
    model = loaded.model
    form = gguf_form(model)
    writer = library.GGUFWriter(file, form)
    writer.add_name(loaded.config.name)
    writer.add_file_type(library.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    writer.add_quantization_version(library.GGML_QUANT_VERSION)
    _add_shape(writer, model.config, model.vocab_size)
    _add_vocabulary(writer, gguf_vocabulary(loaded.tokenizer, model.vocab_size))
    for name, tensor in gguf_weights(model, form).items():
        dtype = library.GGMLQuantizationType[_stored_kind(name, tensor, kind)]
        writer.add_tensor(name, library.quants.quantize(tensor.numpy(), dtype), raw_dtype=dtype)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except OSError as error:  # numpy, which writes the tensors, does not say what the system said.
        raise InputError(f"{file} could not be written: {error.strerror or error}") from error
    finally:
        writer.close()


def gguf_form(model: GPT) -> str:
    """What llama.cpp calls a model that computes the same.

    Raises:
        InputError: It has none: for other positions, fields that no such model has, and models with parts of their own.
    """
    config = model.config
    if config.positions == "sinusoidal":
        raise InputError("llama.cpp has no model with sinusoidal positions: expected rotary or learned ones")
    form = "gpt2" if config.positions == "learned" else "qwen3" if config.qk_norm else "llama"
    faults = [
        f"model.{name} {expected}, got {getattr(config, name)}"
        for name, expected in _FORMS[form].items()
        if getattr(config, name) != expected
    ]
    if form == "gpt2" and config.kv_heads != config.num_heads:
        faults.append(f"as many key-value heads as heads, got model.num_kv_heads {config.num_kv_heads}")
    if form == "gpt2" and config.head_size * config.num_heads != config.d_model:
        faults.append(f"heads of d_model / num_heads, got model.head_dim {config.head_dim}")
    if form == "qwen3" and (config.rope_scaling or "").startswith("llama3"):
        faults.append(f"another model.rope_scaling with query-key norm, got {config.rope_scaling}")
    if faults:
        raise InputError(f"llama.cpp's {form}, its form of {config.positions} positions, has {'; and '.join(faults)}")
    with torch.device("meta"):
        plain = GPT(config, model.vocab_size)
    if part := foreign_part(model, plain):
        raise InputError(f"llama.cpp has no equivalent of this {type(model).__name__}: it is no GPT in {part}")
    return form


def _add_shape(writer: Any, config: ModelConfig, vocab_size: int) -> None:
    writer.add_vocab_size(vocab_size)
    writer.add_context_length(config.max_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    if config.positions == "learned":
        writer.add_layer_norm_eps(config.norm_eps)
        # transformers reads the context of a gpt2 from nowhere, and takes it from here.
        writer.add_uint32("llama.context_length", config.max_len)
        return
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_theta)
    if config.qk_norm:  # transformers reads the head size of a qwen3 from nowhere, and takes it from here.
        writer.add_uint32("llama.rope.dimension_count", config.head_size)
    if (config.rope_scaling or "").startswith("linear:"):
        writer.add_string(f"{writer.arch}.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(float(str(config.rope_scaling).split(":")[1]))


def _add_vocabulary(writer: Any, vocabulary: GGUFVocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.split is not None:
        writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    if vocabulary.end_of_text is not None:
        writer.add_eos_token_id(vocabulary.end_of_text)
        writer.add_bos_token_id(vocabulary.start_of_text)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)
    # Nothing is put before or behind a text.
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _stored_kind(name: str, tensor: Tensor, kind: Kind) -> Kind:
    if tensor.ndim == 1 or name.startswith("position_embd") or kind == "F32":
        return "F32"
    largest = tensor.abs().max().item()
    if not largest <= MAX_F16:
        raise InputError(f"{name} has the weight {largest:g}, too large for {kind}: use F32")
    return "F16" if kind == "Q8_0" and tensor.size(-1) % BLOCK else kind


@torch.no_grad()
def gguf_weights(model: GPT, form: str) -> dict[str, Tensor]:
    """All weights in fp32 on the CPU, under the names of llama.cpp."""
    config = model.config
    weights = {name: tensor.float().cpu() for name, tensor in model.state_dict().items()}
    embedding = weights["embedding.weight"]
    if model.embedding_scale != 1:
        weights["embedding.weight"] = embedding * model.embedding_scale
        weights.setdefault("head.weight", embedding)
    if form == "llama":
        for name, tensor in weights.items():
            if ".attention.query." in name or ".attention.key." in name:
                weights[name] = _side_by_side(tensor, config.head_size)
    named = {_their_name(name): tensor for name, tensor in weights.items()}
    if form == "gpt2":
        for index in range(config.num_layers):
            _complete_gpt2_block(named, f"blk.{index}")
    if (config.rope_scaling or "").startswith("llama3"):
        named["rope_freqs.weight"] = _turned(config, None) / _turned(config, config.rope_scaling)
    return {name: tensor.contiguous() for name, tensor in named.items()}


def _their_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module in _TOP:
        return f"{_TOP[module]}.{kind}"
    _, index, part = module.split(".", 2)
    return f"blk.{index}.{_BLOCK[part]}.{kind}"


def _side_by_side(tensor: Tensor, head_size: int) -> Tensor:
    """Rows i and i + D/2 of each head, one behind the other."""
    return tensor.reshape(-1, 2, head_size // 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _complete_gpt2_block(named: dict[str, Tensor], block: str) -> None:
    """GPT-2 keeps queries, keys and values as one, and has every bias."""
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"):
        weight = named[f"{block}.{name}.weight"]
        named.setdefault(f"{block}.{name}.bias", weight.new_zeros(len(weight)))
    for kind in ("weight", "bias"):
        three = [named.pop(f"{block}.attn_{part}.{kind}") for part in "qkv"]
        named[f"{block}.attn_qkv.{kind}"] = torch.cat(three)


def _turned(config: ModelConfig, scaling: str | None) -> Tensor:
    """By how much each pair of columns is rotated from one token to the next, (D / 2,)."""
    positions = RotaryPositions(2, config.head_size, config.rope_theta, scaling)
    return torch.atan2(positions.sin_TD[1], positions.cos_TD[1])[: config.head_size // 2]
