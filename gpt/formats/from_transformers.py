"""A model folder of Hugging Face transformers as a GPT of ours: its shape, and its weights under our names.

    config.json         the shape: of the Llama form (Llama, SmolLM2, Mistral), the Qwen3 form, or the GPT-2 form
    model.safetensors   the weights, or in several files, which model.safetensors.index.json lists
    tokenizer.json      a byte-level BPE

What a GPT of ours does not compute is refused by the name of its field. transformers itself is not needed.

Shapes: M model size, O outputs of a matrix.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.config import ModelConfig
from gpt.formats.transformers_names import GPT2, GPT2_MATRICES, GPT2_NORMS, LLAMA, LLAMA_BLOCK
from training.config.sections import shown
from training.runtime.errors import InputError
from training.storage.hashing import HashedReading
from training.storage.reading import MalformedFileError, MissingFileError, built, naming, open_file, read_json
from training.storage.tensor_file import read_tensors

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
FORMS = ("llama", "mistral", "qwen3", "gpt2")
_OURS_LLAMA, _OURS_LLAMA_BLOCK = ({theirs: (ours,) for ours, theirs in names.items()} for names in (LLAMA, LLAMA_BLOCK))
_OURS_GPT2 = {theirs.removeprefix("transformer."): (ours,) for ours, theirs in GPT2.items()}
_OURS_GPT2_BLOCK = {
    **{theirs: (ours,) for ours, theirs in GPT2_NORMS.items()},
    **{theirs: ours for ours, theirs in GPT2_MATRICES.items()},
}
"""What we call their modules; older files of GPT-2 are without `transformer`."""
_GELUS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_BUFFERS = re.compile(
    r"(?:transformer\.)?h\.\d+\.attn\.(?:masked_)?bias|model\.(?:layers\.\d+\.self_attn\.)?rotary_emb\..*"
)
"""What older files hold besides weights: masks, and the frequencies of rotary positions."""


@dataclass
class _Rope:
    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    partial_rotary_factor: float = 1.0
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None


@dataclass
class _Llama:
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: _Rope | None = None
    rope_parameters: _Rope | None = None
    partial_rotary_factor: float = 1.0
    sliding_window: int | None = None
    use_sliding_window: bool = True
    layer_types: list[str] | None = None


@dataclass
class _GPT2:
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_positions: int = 1024
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False


DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096},
    "qwen3": {
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32_768,
        "use_sliding_window": False,
    },
}
"""What transformers takes for a field that is not there, where that is not what it takes for Llama."""


def read_shape(folder: Path) -> tuple[ModelConfig, str]:
    """The shape that the config.json of a model folder describes, and its form, one of `FORMS`.

    Raises:
        FileError: It cannot be read, or a field is missing or malformed.
        InputError: A GPT of ours does not compute what it describes; the message names the field.
    """
    file = folder / CONFIG
    saved = read_json(file)
    form = saved.get("model_type") if isinstance(saved, dict) else None
    if form not in FORMS:
        raise _unknown_form(file, form)
    _refuse(file, "quantization_config", saved.get("quantization_config"), None)
    if form == "gpt2":
        return _gpt2_shape(built(_GPT2, saved, file), file), form
    theirs: _Llama = built(_Llama, DEFAULTS.get(form, {}) | saved, file)
    return _llama_shape(theirs, file, qk_norm=form == "qwen3"), form


def _unknown_form(file: Path, form: object) -> InputError:
    why = " (it has biases of query, key and value without one of the product behind them)" if form == "qwen2" else ""
    return InputError(f"{file}: model_type is {shown(form)}{why}: expected one of {', '.join(FORMS)}")


def _refuse(file: Path, name: str, value: object, *allowed: object) -> None:
    if value not in allowed:
        expected = " or ".join("null" if choice is None else shown(choice) for choice in allowed)
        raise InputError(f"{file}: a GPT of ours does not know {name} {shown(value)}: expected {expected}")


def _llama_shape(theirs: _Llama, file: Path, *, qk_norm: bool) -> ModelConfig:
    _refuse(file, "hidden_act", theirs.hidden_act, "silu", "swish")
    window = theirs.sliding_window if theirs.use_sliding_window else None
    _refuse(file, "sliding_window", window, None)
    for kind in theirs.layer_types or []:
        _refuse(file, "layer_types", kind, "full_attention")
    _refuse(file, "partial_rotary_factor", theirs.partial_rotary_factor, 1)
    heads, size = theirs.num_attention_heads, theirs.hidden_size
    theta, scaling = _rotary(theirs, file)
    return ModelConfig(
        num_layers=theirs.num_hidden_layers,
        d_model=size,
        num_heads=heads,
        num_kv_heads=None if theirs.num_key_value_heads == heads else theirs.num_key_value_heads,
        head_dim=None if heads and theirs.head_dim == size / heads else theirs.head_dim,
        d_ff=theirs.intermediate_size,
        max_len=theirs.max_position_embeddings,
        qk_norm=qk_norm,
        tie_embeddings=theirs.tie_word_embeddings,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=float(theirs.rms_norm_eps),
        attention_bias=theirs.attention_bias,
        feed_forward_bias=theirs.mlp_bias,
        embedding_scale=1.0,
    )


def _rotary(theirs: _Llama, file: Path) -> tuple[float, str | None]:
    """Base and scaling of rotary positions; before transformers 5 the base stood by itself."""
    name = "rope_scaling" if theirs.rope_parameters is None else "rope_parameters"
    rope: _Rope = getattr(theirs, name) or _Rope()
    kind = rope.rope_type or rope.type or "default"
    theta = float(theirs.rope_theta if rope.rope_theta is None else rope.rope_theta)
    _refuse(file, f"{name}.rope_type", kind, "default", "linear", "llama3")
    _refuse(file, f"{name}.partial_rotary_factor", rope.partial_rotary_factor, 1)
    if kind == "default":
        return theta, None
    names = ["factor"]
    if kind == "llama3":
        names += ["low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
    numbers = [getattr(rope, field) for field in names]
    if None in numbers:
        raise MalformedFileError(file, f"{name}.{names[numbers.index(None)]} is missing")
    return theta, ":".join([kind, *(format(number, "f").rstrip("0").rstrip(".") for number in numbers)])


def _gpt2_shape(theirs: _GPT2, file: Path) -> ModelConfig:
    _refuse(file, "activation_function", theirs.activation_function, *_GELUS)
    _refuse(file, "scale_attn_weights", theirs.scale_attn_weights, True)
    _refuse(file, "scale_attn_by_inverse_layer_idx", theirs.scale_attn_by_inverse_layer_idx, False)
    _refuse(file, "add_cross_attention", theirs.add_cross_attention, False)
    activation: Any = _GELUS[theirs.activation_function]
    return ModelConfig(
        num_layers=theirs.n_layer,
        d_model=theirs.n_embd,
        num_heads=theirs.n_head,
        d_ff=theirs.n_inner or 4 * theirs.n_embd,
        max_len=theirs.n_positions,
        positions="learned",
        qk_norm=False,
        tie_embeddings=theirs.tie_word_embeddings,
        norm="layer",
        norm_eps=float(theirs.layer_norm_epsilon),
        activation=activation,
        attention_bias=True,
        feed_forward_bias=True,
        embedding_scale=1.0,
    )


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a model folder, in the order of their names.

    Raises:
        FileError: There are none, or the list of them makes no sense.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    file = folder / INDEX
    try:
        saved = read_json(file)
    except MissingFileError as error:
        pickled = any(folder.glob("*.bin"))
        why = "; what .bin files hold is code, which is not run" if pickled else ""
        raise MissingFileError(folder, f"no weights: expected {WEIGHTS}, or several files and {INDEX}{why}") from error
    weight_map = saved.get("weight_map") if isinstance(saved, dict) else None
    names: set[str] = set(built(dict[str, str], weight_map, file, "weight_map").values())
    odd = next((name for name in names if not re.fullmatch(r"[\w.-]+\.safetensors", name)), None)
    if odd is not None:
        raise MalformedFileError(file, f"{shown(odd)} is no name of a file of weights")
    return [folder / name for name in sorted(names)]


def read_weights(folder: Path, form: str) -> "tuple[dict[str, Tensor], str]":
    """All weights of a model folder in fp32, under our names, and their SHA-256.

    That of one file is the file's; of several it is that of their SHA-256s, as text, one after the other.

    Raises:
        FileError: A file cannot be read, or is no such file.
        InputError: A weight is none of such a model.
    """
    found: dict[str, Tensor] = {}
    digests = []
    for file in weight_files(folder):
        with open_file(file) as opened, naming(file):
            reading = HashedReading(opened, file)
            for name, tensor in read_tensors(reading):
                found |= _renamed(name, tensor, form, file)
            digests.append(reading.sha256)
    return found, digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _renamed(name: str, tensor: "Tensor", form: str, file: Path) -> "dict[str, Tensor]":
    """A tensor of theirs as those of ours."""
    if _BUFFERS.fullmatch(name):
        return {}
    is_gpt2 = form == "gpt2"
    top, block = (_OURS_GPT2, _OURS_GPT2_BLOCK) if is_gpt2 else (_OURS_LLAMA, _OURS_LLAMA_BLOCK)
    module, _, kind = name.removeprefix("transformer.").rpartition(".")
    inside = re.fullmatch(r"h\.(\d+)\.(.+)" if is_gpt2 else r"model\.layers\.(\d+)\.(.+)", module)
    ours = block.get(inside[2]) if inside else top.get(module)
    if ours is None or kind not in ("weight", "bias"):
        raise InputError(f"{file}: {shown(name)} is no weight of a GPT of the form {form}")
    value = tensor.float()
    if inside is None:
        return {f"{ours[0]}.{kind}": value}
    if is_gpt2 and value.ndim == 2:  # Its matrices are (M, O), ours are (O, M).
        value = value.T
    if value.ndim == 0 or len(value) % len(ours):
        raise MalformedFileError(file, f"{shown(name)} has the shape {tuple(tensor.shape)}")
    parts = zip(ours, value.chunk(len(ours)), strict=True)
    return {f"blocks.{inside[1]}.{part}.{kind}": own.contiguous() for part, own in parts}
