"""A GPT as a folder of transformers: its own tools load it, and write the same text."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
import torch
import yaml
from helpers import with_training

from data.tokenizers.subwords import learn_subwords
from data.tokenizers.tokenizer import Tokenizer, make_tokenizer
from decoding.decoder import Decoder
from decoding.sampling import GREEDY
from decoding.writing import write
from gpt import export
from gpt.config import GPTConfig, ModelConfig
from gpt.export import model_card, write_transformers
from gpt.formats.from_transformers import read_shape, read_weights
from gpt.model import GPT
from gpt.task import LoadedGPT, load_gpt, train_gpt
from training.config.command_line import Namespace
from training.config.sections import TrainingConfig
from training.runtime.errors import InputError
from training.storage.files import replace_link

TEXT = "".join(f"{n} times {n % 7} is {n * (n % 7)} \u20ac, \u00e7a.\n" for n in range(60))
SHAPE = ModelConfig(num_layers=2, d_model=32, num_heads=4, d_ff=48, max_len=256)
GPT2 = replace(SHAPE, positions="learned", norm="layer", activation="gelu", qk_norm=False, attention_bias=True)
LLAMA = replace(SHAPE, qk_norm=False, num_kv_heads=2, tie_embeddings=True)
TOKENIZERS = {
    "characters": make_tokenizer("characters", [TEXT]),
    "bytes": make_tokenizer("bytes", [TEXT]),
    "bpe": learn_subwords([TEXT], 300, 10**6),
}
PROMPT = "9 times 2"
READ = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained(sys.argv[1]), AutoModelForCausalLM.from_pretrained(sys.argv[1])
inputs = tokenizer(sys.argv[2], return_tensors="pt")
written = model.generate(**inputs, max_new_tokens=200, do_sample=False)
assert not {"gpt", "data", "layers"} & set(sys.modules)
sys.stdout.buffer.write(tokenizer.decode(written[0]).encode())
"""


def loaded_gpt(shape: ModelConfig, tokenizer: Tokenizer) -> LoadedGPT:
    """A model none of whose weights is zero."""
    model, generator = GPT(shape, len(tokenizer)).eval(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator).add_(0.01)
    return LoadedGPT(model, tokenizer, GPTConfig(model=shape, training=TrainingConfig(max_steps=1)), "raw", "0" * 64)


def greedy_text(loaded: LoadedGPT, count: int) -> str:
    pieces = write(Decoder(loaded.model, "eager"), loaded.tokenizer, PROMPT, max_new_tokens=count, sampling=GREEDY)
    return PROMPT + loaded.tokenizer.decode([piece.token for piece in pieces if piece.token is not None])


def exported(loaded: LoadedGPT, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    transformers = pytest.importorskip("transformers")
    folder.mkdir()
    write_transformers(loaded, folder, dtype)
    classes = transformers.AutoTokenizer, transformers.AutoModelForCausalLM
    tokenizer, model = (each.from_pretrained(folder) for each in classes)
    return tokenizer, model


@pytest.mark.parametrize(("name", "shape"), [("characters", SHAPE), ("bytes", LLAMA), ("bpe", GPT2)])
def test_their_greedy_text_is_ours(name: str, shape: ModelConfig, tmp_path: Path) -> None:
    loaded = loaded_gpt(shape, TOKENIZERS[name])
    tokenizer, model = exported(loaded, tmp_path / "model")
    inputs = tokenizer(PROMPT, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=200, do_sample=False)
    text = tokenizer.decode(written[0], skip_special_tokens=True)
    assert text == greedy_text(loaded, 200)
    assert (len(written[0]) - inputs["input_ids"].size(1) == 200) or written[0, -1] == loaded.tokenizer.end_of_text
    assert model.generation_config.eos_token_id == loaded.tokenizer.end_of_text == tokenizer.eos_token_id
    with torch.no_grad():
        expected = loaded.model(written[:, :200])
        assert (model(written[:, :200]).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("shape", [SHAPE, LLAMA, replace(GPT2, feed_forward_bias=True)], ids=["qwen3", "llama", "gpt2"])
@torch.no_grad()
def test_what_goes_out_can_come_in_again(shape: ModelConfig, tmp_path: Path) -> None:
    loaded = loaded_gpt(shape, TOKENIZERS["bpe"])
    write_transformers(loaded, tmp_path, torch.float32)
    back, form = read_shape(tmp_path)
    weights, _ = read_weights(tmp_path, form)
    model = GPT(back, loaded.model.vocab_size).eval()
    model.load_state_dict(weights)
    tokens = torch.arange(250)[None]
    expected = loaded.model(tokens)
    assert (model(tokens) - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_weights_in_bf16_are_rounded_once(tmp_path: Path) -> None:
    loaded = loaded_gpt(SHAPE, TOKENIZERS["characters"])
    _, model = exported(loaded, tmp_path / "model", torch.bfloat16)
    assert model.dtype == torch.bfloat16
    scaled = (loaded.model.embedding.weight * SHAPE.d_model**0.5).bfloat16()
    assert torch.equal(model.model.embed_tokens.weight, scaled)


@pytest.mark.ci
def test_nothing_of_ours_is_needed_to_write_the_same_200_tokens(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    loaded, folder = loaded_gpt(LLAMA, TOKENIZERS["characters"]), tmp_path / "model"
    folder.mkdir()
    write_transformers(loaded, folder, torch.float32)
    done = run([sys.executable, "-I", "-c", READ, folder, PROMPT], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == greedy_text(loaded, 200)


def test_what_has_no_form_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    loaded = loaded_gpt(replace(SHAPE, positions="sinusoidal"), TOKENIZERS["bytes"])
    with pytest.raises(InputError, match="no model like ours with sinusoidal positions"):
        write_transformers(loaded, tmp_path, torch.float32)
    assert not list(tmp_path.iterdir())


def test_weights_too_large_for_16_bits_are_refused(tmp_path: Path) -> None:
    loaded = loaded_gpt(LLAMA, TOKENIZERS["bytes"])
    with torch.no_grad():
        loaded.model.blocks[1].feed_forward.up.weight[0, 0] = 1e5
    fault = r"^model\.layers\.1\.mlp\.up_proj\.weight has the weight 100000, too large for float16: use --dtype fp32$"
    with pytest.raises(InputError, match=fault):
        write_transformers(loaded, tmp_path, torch.float16)


def test_weights_and_card_are_of_one_checkpoint(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_gpt(with_training(config, max_steps=2, checkpoint_interval=1, eval_interval=0), output_dir=tmp_path / "run")

    def write(*given: Any) -> None:
        write_transformers(*given)
        replace_link(tmp_path / "run/checkpoints/best", "step-00000001")  # As a run that goes on does it.

    monkeypatch.setattr(export, "write_transformers", write)
    given = {"checkpoint": str(tmp_path / "run"), "output": str(tmp_path / "out"), "format": "transformers"}
    others = dict.fromkeys(("weights", "license", "push_to_hub")) | {"dtype": "fp32", "trust_code": False}
    export.export(Namespace(**given, **others))
    assert "| optimizer steps | 2 |" in (tmp_path / "out/README.md").read_text()


def test_the_card_says_what_the_model_is_and_how_good(config: GPTConfig, tmp_path: Path) -> None:
    train_gpt(config, output_dir=tmp_path / "run")
    loaded = load_gpt(tmp_path / "run")
    card = str(model_card(loaded, tmp_path / "run", "me/mine", "how to use it", "transformers", "mit"))
    _, front, body = card.split("---\n", 2)
    parsed = yaml.safe_load(front)
    assert {name: parsed[name] for name in ("license", "library_name", "pipeline_tag")} == {
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    best = min((line for line in lines if "val_loss" in line), key=lambda line: line["val_loss"])
    (result,) = parsed["model-index"][0]["results"]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values["val_loss"] == pytest.approx(best["val_loss"], abs=1e-6)
    assert values["bits_per_byte"] == pytest.approx(best["bits_per_byte"], abs=1e-6)
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    for said in (
        "# me/mine",
        "how to use it",
        f"| parameters | {parameters:,} |",
        f"| optimizer steps | {int(best['step'])} |",
        f"| bits per byte | {best['bits_per_byte']:.4f} |",
        f"| SHA-256 | {loaded.data_sha256} |",
        "| device | ",
        "  source: text.txt",
        "Licence: mit.",
    ):
        assert said in body
    assert str(tmp_path) not in card, "whose folders these are is nobody's business"
