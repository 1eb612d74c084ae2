"""Models of transformers as GPTs of ours: the same logits, and what we do not compute refused by name."""

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from published_models import PUBLISHED, TOKENS, random_weights, write_published, write_tokenizer

from gpt.config import GPTConfig, ModelConfig
from gpt.formats.from_transformers import DEFAULTS, _renamed, read_shape, weight_files
from gpt.initial_weights import open_origin, read_base
from gpt.model import GPT
from training.config.sections import TrainingConfig
from training.runtime.errors import InputError
from training.storage.reading import MalformedFileError

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA = {"model_type": "llama", "max_position_embeddings": 32, "vocab_size": 300, "num_key_value_heads": 2} | TINY
QWEN3, MISTRAL = LLAMA | {"model_type": "qwen3", "head_dim": 12}, LLAMA | {"model_type": "mistral"}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 300}


def from_folder(folder: Path, max_len: int = 32) -> tuple[GPT, str]:
    """The model of a folder, with a context of at most so many tokens, and the SHA-256 of its weights."""
    config = GPTConfig(init_from=str(folder), model=ModelConfig(max_len=max_len), training=TrainingConfig(max_steps=1))
    base = read_base(config)
    shape = vars(base.origin.model) | {"max_len": max_len}
    ours = GPT(ModelConfig(**shape), len(base.origin.tokenizer)).eval()
    ours.load_state_dict(base.weights)
    return ours, base.sha256


@torch.no_grad()
def assert_same_logits(ours: GPT, theirs: Any, length: int = 32) -> None:
    tokens = torch.randint(ours.vocab_size, (2, length), generator=torch.Generator().manual_seed(1))
    expected = theirs(tokens).logits[..., : ours.vocab_size]
    assert (ours(tokens) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_with_few_layers_and_tokens_give_the_same_logits(name: str, tmp_path: Path) -> None:
    layers = "n_layer" if name == "GPT-2" else "num_hidden_layers"
    theirs = write_published(tmp_path, name, vocab_size=300, **{layers: 2})
    ours, sha256 = from_folder(tmp_path)
    assert sha256 == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert ours.vocab_size == 293, "rows that no token has are left out"
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    assert_same_logits(ours, theirs)


@pytest.mark.nightly
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_give_the_same_logits(name: str, tmp_path: Path) -> None:
    theirs = write_published(tmp_path, name)
    ours, _ = from_folder(tmp_path, max_len=1024)
    assert ours.vocab_size == TOKENS[name]
    assert_same_logits(ours, theirs, length=64)


ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4.5, "rope_theta": 5e5}


@pytest.mark.parametrize(
    "config",
    [
        LLAMA | {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1, "rms_norm_eps": 1e-3},
        LLAMA | {"rope_parameters": ROPE | {"original_max_position_embeddings": 16}, "head_dim": 6},
        LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.5}, "rope_theta": 1000.0},
        QWEN3 | {"attention_bias": True},
        MISTRAL | {"sliding_window": None, "tie_word_embeddings": True},
        GPT2 | {"activation_function": "gelu", "n_inner": 20, "tie_word_embeddings": False},
    ],
)
def test_what_transformers_saves_gives_the_same_logits(config: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config)).eval()
    random_weights(theirs)
    theirs.save_pretrained(tmp_path, max_shard_size=4000)
    write_tokenizer(tmp_path, 300)
    files = weight_files(tmp_path)
    assert len(files) > 1
    ours, sha256 = from_folder(tmp_path)
    assert sha256 == hashlib.sha256("".join(map(digest, files)).encode()).hexdigest()
    assert_same_logits(ours, theirs)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"model_type": "gemma"}, r"model_type is 'gemma': expected one of llama, mistral, qwen3, gpt2$"),
        ({}, r"model_type is None: "),
        (
            LLAMA | {"model_type": "qwen2"},
            r"model_type is 'qwen2' \(it has biases of query, key and value without one ",
        ),
        (LLAMA | {"hidden_act": "gelu"}, r"does not know hidden_act 'gelu': expected 'silu' or 'swish'$"),
        (LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, r"rope_scaling\.rope_type 'yarn': expected "),
        (LLAMA | {"rope_parameters": {"rope_type": "dynamic"}}, r"rope_parameters\.rope_type 'dynamic'"),
        (LLAMA | {"rope_scaling": {"type": "llama3", "factor": 8.0}}, r"rope_scaling\.low_freq_factor is missing$"),
        (LLAMA | {"partial_rotary_factor": 0.5}, r"does not know partial_rotary_factor 0\.5: expected 1$"),
        (LLAMA | {"quantization_config": {"bits": 4}}, r"does not know quantization_config .*: expected null$"),
        (LLAMA | {"hidden_size": "16"}, r"hidden_size: expected a whole number, got '16'$"),
        ({"model_type": "llama"}, r"hidden_size is missing$"),
        (LLAMA | {"num_attention_heads": 3, "num_key_value_heads": None}, r"model\.d_model must be a multiple"),
        (MISTRAL, r"does not know sliding_window 4096: expected null$"),
        (QWEN3 | {"use_sliding_window": True, "sliding_window": 8}, r"sliding_window 8: expected null$"),
        (QWEN3 | {"layer_types": ["sliding_attention"]}, r"does not know layer_types 'sliding_attention'"),
        (GPT2 | {"activation_function": "relu"}, r"does not know activation_function 'relu'"),
        (
            GPT2 | {"scale_attn_by_inverse_layer_idx": True},
            r"know scale_attn_by_inverse_layer_idx True: expected False$",
        ),
        (GPT2 | {"scale_attn_weights": False}, r"does not know scale_attn_weights False: expected True$"),
    ],
)
def test_what_we_do_not_compute_is_refused_by_the_name_of_its_field(
    config: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=fault) as refused:
        read_shape(tmp_path)
    assert "config.json" in str(refused.value) or "model.d_model" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("form", ["llama", "mistral", "qwen3", "gpt2"])
def test_fields_that_are_not_there_have_the_defaults_of_transformers(form: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    required = () if form == "gpt2" else TINY
    left_out = transformers.AutoConfig.for_model(form).to_dict()
    explicit = {name: value for name, value in left_out.items() if value is not None} | {"sliding_window": None}
    explicit.pop("layer_types", None)
    short = {"model_type": form, "sliding_window": None} | {name: explicit[name] for name in required}
    if form == "qwen3":
        short.pop("sliding_window")
    shapes = []
    for config in (explicit, short):
        (tmp_path / "config.json").write_text(json.dumps(config))
        shapes.append(read_shape(tmp_path)[0])
    assert shapes[0] == shapes[1]
    assert set(DEFAULTS.get(form, {})) <= left_out.keys()


def write_folder(folder: Path, weights: dict[str, Any] | None = None, config: dict[str, Any] = GPT2) -> None:
    """A folder of a model, with the header of a file of weights alone."""
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, 300)
    if weights is not None:
        header = json.dumps(weights).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def test_what_is_no_model_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere does not exist: .*\(one of the hub: hf download OWNER/NAME"):
        open_origin(str(tmp_path / "nowhere"))
    write_folder(tmp_path)
    with pytest.raises(InputError, match=r"no weights: expected model\.safetensors, or several files and \S+\.json$"):
        from_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match=r"what \.bin files hold is code, which is not run$"):
        from_folder(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"wte.weight": "../model.safetensors"}}))
    with pytest.raises(InputError, match=r"index\.json: '\.\./model\.safetensors' is no name of a file of weights$"):
        from_folder(tmp_path)
    index.write_text(json.dumps({"weight_map": {"wte.weight": "model-1.safetensors"}}))
    with pytest.raises(InputError, match=r"model-1\.safetensors: there is no such file$"):
        from_folder(tmp_path)
    write_folder(tmp_path, {"score.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})
    with pytest.raises(InputError, match=r"'score\.weight' is no weight of a GPT of the form gpt2$"):
        from_folder(tmp_path)
    write_folder(tmp_path, {"wte.weight": {"dtype": "F8_E4M3", "shape": [0], "data_offsets": [0, 0]}})
    with pytest.raises(InputError, match=r"model\.safetensors: 'wte\.weight' is of the type 'F8_E4M3'$"):
        from_folder(tmp_path)
    for name, shape in (("h.0.attn.c_attn.bias", (4,)), ("h.0.ln_1.weight", ())):
        with pytest.raises(MalformedFileError, match=rf"^f: '{name}' has the shape {re.escape(str(shape))}$"):
            _renamed(name, torch.zeros(shape), "gpt2", Path("f"))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(
        InputError, match=r"tokenizer\.json: there is no such file, and a model goes with its tokenizer$"
    ):
        from_folder(tmp_path)


def test_tensors_may_be_listed_in_any_order(tmp_path: Path) -> None:
    theirs = write_published(tmp_path, "GPT-2", vocab_size=300, n_layer=1, n_embd=24, n_positions=32)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    listed = json.loads(content[8 : 8 + length])
    header = json.dumps(dict(reversed(listed.items()))).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    ours, _ = from_folder(tmp_path)
    assert_same_logits(ours, theirs)
