"""A GPT of bytes and one of subwords: trained, measured, written with, gone on with."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator
from helpers import command, read_metrics, with_training
from tokenizers import Tokenizer as LibraryTokenizer

from data.tokenizers.tokenizer import make_tokenizer
from gpt.config import GPTConfig
from gpt.task import GPTTask, default_prompt, load_gpt, measure_split, train_gpt
from training.runtime.errors import InputError

EVALUATE = Path(__file__).parents[2] / "launch/evaluate.py"


def of(config: GPTConfig, tokenizer: str) -> GPTConfig:
    return replace(config, data=replace(config.data, tokenizer=tokenizer))


@pytest.mark.parametrize("name", ["bytes", "bpe:300"])
def test_a_model_of_bytes_or_subwords_is_trained_measured_and_written_with(
    config: GPTConfig, name: str, tmp_path: Path
) -> None:
    source = Path(config.data.source)
    source.write_text(source.read_text().replace("times", "mal é"), encoding="utf-8")
    config = with_training(of(config, name), max_steps=4, eval_interval=4, checkpoint_interval=4)
    task = GPTTask(config)
    train_gpt(config, output_dir=tmp_path / "run")
    loaded = load_gpt(tmp_path / "run")
    assert loaded.tokenizer.to_json() == task.data.tokenizer.to_json()
    text = source.read_text(encoding="utf-8")
    own = text[len(text) * 9 // 10 :]
    # Bits per byte, from the split's own bytes: the first token is no target, the end of the text is one of no bytes.
    last = read_metrics(tmp_path / "run")[-1]
    tokens = loaded.tokenizer.encode(own).tolist()
    num_bytes = len(own.encode()) - len(loaded.tokenizer.token_bytes(tokens[0]))
    assert last["bits_per_byte"] == pytest.approx(last["val_loss"] * len(tokens) / num_bytes / math.log(2))
    assert "bits_per_character" not in last
    measured = measure_split(Accelerator(cpu=True), loaded, "val")
    assert measured.metrics["bits_per_byte"] == pytest.approx(last["bits_per_byte"], rel=1e-4)
    assert default_prompt(loaded.tokenizer) == "\n"
    if name != "bytes":
        library = LibraryTokenizer.from_file(str(tmp_path / "run/checkpoints/last/tokenizer.json"))
        assert library.encode(own).ids == tokens
    _evaluate(tmp_path / "run", last)
    with pytest.raises(InputError, match=r"data\.tokenizer"):
        train_gpt(of(config, "characters"), output_dir=tmp_path / "run", resume=True)


def _evaluate(run: Path, last: dict[str, float]) -> None:
    done = command(EVALUATE, "--checkpoint", run, "--split", "val", cwd=run)
    assert done.returncode == 0, done.stderr
    assert f"bits per byte       {last['bits_per_byte']:.4f}\n" in done.stdout
    assert f"{last['val_loss']:.4f} nats per token\n" in done.stdout
    options = ["--checkpoint", run, "--mode", "eager", "--max_new_tokens", "30", "--prompt", "漢 <|endoftext|>é"]
    drawn = command(EVALUATE, *options, "--alternatives", "2", "--when_full", "slide", cwd=run)
    assert drawn.returncode == 0, drawn.stderr
    prompt, *lines = drawn.stdout.splitlines()
    assert prompt == options[-1]
    assert f"\n{len(lines[:-1])} tokens, " in f"\n{drawn.stderr}"
    found = command(EVALUATE, *options[:4], "--beams", "2", "--max_new_tokens", "3", "--prompt", "漢é", cwd=run)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("漢é") == 2


def test_a_tokenizer_of_ones_own_is_noted_and_kept(config: GPTConfig, tmp_path: Path) -> None:
    saved = json.loads(make_tokenizer("bpe:300", [Path(config.data.source).read_text()]).to_json())
    (tmp_path / "own.json").write_text(json.dumps(saved | {"normalizer": {"type": "NFC"}}))
    task = GPTTask(of(config, str(tmp_path / "own.json")))
    assert task.checkpoint_files()["tokenizer.json"] == (tmp_path / "own.json").read_text()
    assert any("own.json: it normalises text (NFC)" in note for note in task.data.notes)
    assert len(task.data.tokenizer) == task.model.vocab_size == 300
