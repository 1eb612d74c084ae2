"""A GPT that learns answers: trained, gone on with, measured, written with; conversations by a chat template."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import command, read_metrics, with_training
from tokenizers import AddedToken
from tokenizers import Tokenizer as LibraryTokenizer

from data.config import TextConfig
from data.tokenizers.subwords import learn_subwords
from gpt.config import GPTConfig
from gpt.export import write_transformers
from gpt.formats.gguf import write_gguf
from gpt.task import GPTTask, load_gpt, measure_split, train_gpt
from training.runtime.errors import InputError

EVALUATE = Path(__file__).parents[2] / "launch/evaluate.py"
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def of_rows(config: GPTConfig, source: Path, **data: Any) -> GPTConfig:
    model = replace(config.model, max_len=48)
    return replace(config, model=model, data=TextConfig(source=str(source), **data))


@pytest.fixture
def sums(config: GPTConfig, tmp_path: Path) -> GPTConfig:
    rows = [{"prompt": f"{n} and {n % 7} is ", "answer": str(n + n % 7)} for n in range(200)]
    file = write(tmp_path / "sums.jsonl", rows)
    config = of_rows(config, file, tokenizer="bytes", prompt_column="prompt", answer_column="answer")
    return with_training(config, max_steps=4, eval_interval=2, checkpoint_interval=2, batch_size=4)


def test_a_run_learns_answers_goes_on_to_the_bit_and_is_measured(sums: GPTConfig, tmp_path: Path) -> None:
    train_gpt(sums, output_dir=tmp_path / "run")
    last = read_metrics(tmp_path / "run")[-1]
    # The answers of the last tenth, and a token of no bytes behind each.
    num_bytes = sum(len(str(n + n % 7)) for n in range(180, 200))
    assert last["bits_per_byte"] == pytest.approx(last["val_loss"] / math.log(2) * (num_bytes + 20) / num_bytes)
    assert last["tokens"] == GPTTask(sums).data.training_batch(0, 16).num_targets
    sample = sorted((tmp_path / "run/samples").iterdir())[-1].read_text()
    assert sample.startswith("180 and 5 is ")
    train_gpt(with_training(sums, max_steps=2), output_dir=tmp_path / "parts")
    train_gpt(sums, output_dir=tmp_path / "parts", resume=True)
    weights = [tmp_path / run / "checkpoints/last/model.safetensors" for run in ("run", "parts")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    loaded = load_gpt(tmp_path / "run")
    measured = measure_split(Accelerator(cpu=True), loaded, "val")
    assert measured.loss == pytest.approx(last["val_loss"], rel=1e-5)
    assert measured.metrics["bits_per_byte"] == pytest.approx(last["bits_per_byte"], rel=1e-5)
    assert measured.description.startswith(f"val split of {sums.data.source}, {num_bytes + 20} targets, 200 rows, ")
    assert measure_split(Accelerator(cpu=True), loaded, "train").loss != measured.loss


def test_other_rows_are_measured_as_those_of_the_run(sums: GPTConfig, tmp_path: Path) -> None:
    train_gpt(sums, output_dir=tmp_path / "run")
    others = write(tmp_path / "others.jsonl", [{"prompt": f"{n} is ", "answer": "yes"} for n in range(10)])
    done = command(EVALUATE, "--checkpoint", "run", "--split", "val", "--data.source", others, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "others.jsonl, 4 targets, 10 rows, 1 of them to validate on (the last ones)" in done.stdout
    Path(sums.data.source).write_text(others.read_text())
    with pytest.raises(InputError, match="is not the text that the run was trained on"):
        measure_split(Accelerator(cpu=True), load_gpt(tmp_path / "run"), "val")
    with pytest.raises(InputError, match="data"):
        train_gpt(with_training(sums, max_steps=6), output_dir=tmp_path / "run", resume=True)


def test_parts_of_a_batch_with_more_and_fewer_answers_change_nothing(sums: GPTConfig, tmp_path: Path) -> None:
    exact = with_training(sums, precision="fp64", batch_size=6, eval_interval=0, log_interval=1)
    for steps in (1, 4):
        train_gpt(with_training(exact, accumulation_steps=steps), output_dir=tmp_path / str(steps))
    for whole, parts in zip(read_metrics(tmp_path / "1"), read_metrics(tmp_path / "4"), strict=True):
        assert parts["train_loss"] == pytest.approx(whole["train_loss"], abs=1e-8, rel=0)
        assert parts["tokens"] == whole["tokens"]


def test_work_and_room_are_of_all_tokens_and_not_of_targets_alone(sums: GPTConfig) -> None:
    task = GPTTask(sums)
    per_window = task.flops_per_token * task.data.tokens_per_sample
    assert per_window == pytest.approx(task.model.flops_per_token() * 48)
    assert task.data.tokens_per_sample < 24


def test_documents_that_do_not_see_each_other_are_trained_and_measured(config: GPTConfig, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"text": f"{n} times {n} is {n * n}"} for n in range(100)])
    config = of_rows(config, file, tokenizer="bytes", packing="documents")
    config = with_training(config, max_steps=12, eval_interval=12, batch_size=4)
    train_gpt(config, output_dir=tmp_path / "run")
    last, loaded = read_metrics(tmp_path / "run")[-1], load_gpt(tmp_path / "run")
    assert measure_split(Accelerator(cpu=True), loaded, "val").loss == pytest.approx(last["val_loss"], rel=1e-6)
    joined = replace(config, data=replace(config.data, packing="joined"))
    other = loaded._replace(config=joined)
    assert abs(measure_split(Accelerator(cpu=True), other, "val").loss - last["val_loss"]) > 1e-4
    with pytest.raises(InputError, match=r"data\.packing"):
        train_gpt(with_training(joined, max_steps=13), output_dir=tmp_path / "run", resume=True)


@pytest.fixture
def chats(config: GPTConfig, tmp_path: Path) -> GPTConfig:
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]}
        for n in range(60)
    ]
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    library = LibraryTokenizer.from_str(learn_subwords(["user assistant 1? 2! " * 9], 280, 10**6).to_json())
    library.add_special_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")])
    library.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHATML)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    file = write(tmp_path / "chats.jsonl", rows)
    config = of_rows(config, file, tokenizer=str(folder / "tokenizer.json"), messages_column="messages")
    return with_training(config, max_steps=3, eval_interval=3, checkpoint_interval=3, batch_size=4)


def test_a_run_that_learns_conversations_keeps_their_template(
    chats: GPTConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = GPTTask(chats)
    train_gpt(chats, output_dir=tmp_path / "run")
    for file in (tmp_path / "tokenizer").iterdir():
        file.unlink()
    loaded = load_gpt(tmp_path / "run")
    asked = loaded.tokenizer.encode_prompt("7?")
    assert asked == task.data.tokenizer.encode_prompt("7?")
    assert loaded.tokenizer.end_of_text == task.data.tokenizer.end_of_text == len(loaded.tokenizer) - 1
    last = read_metrics(tmp_path / "run")[-1]
    measured = measure_split(Accelerator(cpu=True), loaded, "val")
    assert measured.loss == pytest.approx(last["val_loss"], rel=1e-5)
    batch = task.data.training_batch(0, 1)
    first = batch.inputs[0][0, : len(asked)].tolist()
    assert first[0] == asked[0]
    assert batch.targets_BT[0, : len(asked) - 1].max() < 0, "nothing of a question counts"
    transformers = pytest.importorskip("transformers")
    write_transformers(loaded, tmp_path, torch.float32)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    question = [{"role": "user", "content": "7?"}]
    assert theirs.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"] == asked
    assert theirs.eos_token == "<|im_end|>"
    gguf = pytest.importorskip("gguf")
    write_gguf(loaded, tmp_path / "chat.gguf", "F32")
    assert gguf.GGUFReader(tmp_path / "chat.gguf").fields["tokenizer.chat_template"].contents() == CHATML
    assert not caplog.records, "it is written once"
    options = ["--checkpoint", "run", "--prompt", "7?", "--max_new_tokens", "5", "--mode", "eager"]
    done = command(EVALUATE, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("7?")


def test_conversations_without_a_question_are_sampled_from_all_the_same(chats: GPTConfig) -> None:
    said = {"messages": [{"role": "system", "content": "Go on."}, {"role": "assistant", "content": "2!"}]}
    write(Path(chats.data.source), [said] * 12)
    task = GPTTask(chats)
    assert task.data.prompt == ""
    task.sample_length = 2
    assert isinstance(task.sample(1), str)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_model_that_exists_learns_answers_with_its_own_tokenizer(
    config: GPTConfig, sums: GPTConfig, tmp_path: Path, rank: int
) -> None:
    first = replace(config, data=replace(config.data, tokenizer="bpe:280"), model=sums.model)
    train_gpt(first, output_dir=tmp_path / "first")
    tuned = replace(sums, init_from=str(tmp_path / "first"), data=replace(sums.data, tokenizer="characters"))
    tuned = replace(tuned, lora=replace(tuned.lora, rank=rank))
    train_gpt(tuned, output_dir=tmp_path / "tuned")
    loaded = load_gpt(tmp_path / "tuned")
    assert loaded.tokenizer.to_json() == load_gpt(tmp_path / "first").tokenizer.to_json()
    last = read_metrics(tmp_path / "tuned")[-1]
    assert measure_split(Accelerator(cpu=True), loaded, "val").loss == pytest.approx(last["val_loss"], rel=1e-5)


def test_a_chat_template_goes_from_run_to_run(chats: GPTConfig, tmp_path: Path) -> None:
    """A model folder's template is kept by a run on plain text, and serves one on conversations that begins with it."""
    train_gpt(chats, output_dir=tmp_path / "first")
    text = tmp_path / "text.txt"
    text.write_text("who? what! " * 200)
    plain = replace(chats, data=TextConfig(source=str(text)), init_from=str(tmp_path / "first"))
    train_gpt(plain, output_dir=tmp_path / "plain")
    assert load_gpt(tmp_path / "plain").chat is None
    again = replace(chats, init_from=str(tmp_path / "plain"), data=replace(chats.data, tokenizer="characters"))
    train_gpt(again, output_dir=tmp_path / "again")
    first, second = load_gpt(tmp_path / "first"), load_gpt(tmp_path / "again")
    assert first.chat == second.chat
    assert first.tokenizer.encode_prompt("7?") == second.tokenizer.encode_prompt("7?")
