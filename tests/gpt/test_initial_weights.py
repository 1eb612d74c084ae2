"""A run that begins with a model that exists: its weights, shape and tokenizer, and a resume without it."""

import re
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, command, free_port, read_metrics, torchrun, with_training
from published_models import write_published
from torch import Tensor, nn

from data.config import TextConfig
from data.tokenizers.characters import CharTokenizer
from data.tokenizers.tokenizer import make_tokenizer
from gpt import beginning
from gpt.beginning import agreed, with_shared_rows
from gpt.config import GPTConfig, ModelConfig
from gpt.initial_config import DEFAULT_CONTEXT, completed, given_in_code
from gpt.initial_weights import base_weights, open_origin
from gpt.model import GPT
from gpt.task import GPTTask, load_gpt, train_gpt
from training.config.command_line import config_to_yaml
from training.config.sections import TrainingConfig
from training.loop import Trainer
from training.runtime.errors import InputError
from training.storage.checkpoint import Checkpoint, CheckpointStore, checkpoint_name
from training.storage.reading import read_yaml
from training.storage.run_folder import RunFolder
from training.storage.tensor_file import SUFFIX

TRAIN = ROOT / "launch/train_gpt.py"


@pytest.fixture
def source(config: GPTConfig, tmp_path: Path) -> Path:
    """A run with an average of its weights."""
    config = with_training(config, max_steps=4, eval_interval=2, checkpoint_interval=2, ema_decay=0.5)
    train_gpt(config, output_dir=tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def tuned(config: GPTConfig, source: Path, tmp_path: Path) -> GPTConfig:
    """A run that begins with it, on another text of the same characters."""
    other = tmp_path / "other.txt"
    other.write_text("".join(f"{i * (i % 5)} is {i} times {i % 5}.\n" for i in range(300)))
    return replace(config, init_from=str(source), model=ModelConfig(), data=TextConfig(source=str(other)))


@pytest.fixture
def first_weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Tensor]]:
    """What the runs of a test have before their first step: "model", and "ema" where there is one."""
    seen: dict[str, dict[str, Tensor]] = {}
    fit = Trainer.fit

    def note(trainer: Trainer, trackers: Any) -> None:
        groups = trainer.saver.tensors()
        seen.update({name: {key: t.clone() for key, t in groups[name].items()} for name in groups})
        fit(trainer, trackers)

    monkeypatch.setattr(Trainer, "fit", note)
    return seen


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def last_tensors(run: Path) -> list[bytes]:
    files = sorted((run / "checkpoints/last").glob(f"*{SUFFIX}"))
    return [file.read_bytes() for file in files]


def test_a_run_begins_with_the_average_and_the_shape_of_another_one(
    tuned: GPTConfig,
    source: Path,
    first_weights: dict[str, dict[str, Tensor]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    average = Checkpoint(source / "checkpoints/best").tensors("ema")
    assert not same(average, Checkpoint(source / "checkpoints/best").tensors("model"))
    capsys.readouterr()
    train_gpt(with_training(tuned, max_steps=3, ema_decay=0.9), output_dir=tmp_path / "run")
    best = (source / "checkpoints/best").resolve()
    sha256 = Checkpoint(best)._sealed._entries["ema.safetensors"].sha256
    said = capsys.readouterr().out
    assert f"\nweights     the average of the weights of {best}, SHA-256 {sha256[:12]}\n" in said
    assert same(first_weights["model"], average)
    assert same(first_weights["ema"], average)
    assert not any(t.any() for name, t in first_weights["optimizer"].items()), "the optimizer starts anew"
    written = read_yaml(tmp_path / "run/config.yaml")
    assert written["init_from"] == str(best)
    assert written["init_sha256"] == sha256
    assert written["model"] == read_yaml(source / "config.yaml")["model"] | {"dropout": 0.0}
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3]
    assert load_gpt(tmp_path / "run").tokenizer.to_json() == load_gpt(source).tokenizer.to_json()


def test_a_resume_needs_the_source_no_more(tuned: GPTConfig, source: Path, tmp_path: Path) -> None:
    tuned = replace(tuned, model=ModelConfig(dropout=0.1))
    train_gpt(tuned, output_dir=tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "cut", symlinks=True)
    shutil.rmtree(tmp_path / "cut/checkpoints" / checkpoint_name(12))
    shutil.rmtree(source)
    train_gpt(tuned, output_dir=tmp_path / "cut", resume=True)
    assert last_tensors(tmp_path / "cut") == last_tensors(tmp_path / "run")
    written = [read_yaml(tmp_path / name / "config.yaml") for name in ("run", "cut")]
    assert written[0] == written[1]
    own = replace(tuned, init_sha256="0" * 64)
    with pytest.raises(InputError, match=r"init_sha256 was '[0-9a-f]{64}', is now '0{64}'"):
        train_gpt(own, output_dir=tmp_path / "cut", resume=True)


def test_a_run_without_a_checkpoint_starts_over_and_needs_the_same_source(
    tuned: GPTConfig, source: Path, tmp_path: Path
) -> None:
    train_gpt(with_training(tuned, max_steps=2), output_dir=tmp_path / "run")
    expected = last_tensors(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    train_gpt(with_training(tuned, max_steps=2), output_dir=tmp_path / "run", resume=True)
    assert last_tensors(tmp_path / "run") == expected
    shutil.rmtree(tmp_path / "run/checkpoints")
    written = replace(tuned, init_sha256="1" * 64)
    with pytest.raises(InputError, match=r"^init_from: the weights of \S+ are not those .* init_sha256 says 1{64}$"):
        train_gpt(written, output_dir=tmp_path / "run", resume=True)
    shutil.rmtree(source)
    with pytest.raises(InputError, match=r"^init_from: \S+step-\d+ does not exist: "):
        train_gpt(tuned, output_dir=tmp_path / "run", resume=True)


def test_a_run_all_of_whose_checkpoints_are_damaged_begins_again(
    tuned: GPTConfig, first_weights: dict[str, dict[str, Tensor]], source: Path, tmp_path: Path
) -> None:
    tuned = with_training(tuned, max_steps=2, ema_decay=0.5)
    train_gpt(tuned, output_dir=tmp_path / "run")
    for file in (tmp_path / "run/checkpoints").glob("step-*/model.safetensors"):
        file.write_bytes(b"")
    train_gpt(tuned, output_dir=tmp_path / "run", resume=True)
    assert same(first_weights["model"], Checkpoint(source / "checkpoints/best").tensors("ema"))


def test_an_option_that_disagrees_is_an_error_and_a_file_gives_way(config: GPTConfig, source: Path) -> None:
    asked = replace(config, init_from=str(source), model=replace(config.model, d_ff=64, dropout=0.3))
    with pytest.raises(InputError, match=r"^model\.d_ff is 32 in \S+source, got 64: leave it out, the shape is that "):
        completed(asked, {"model.d_ff", "model.dropout"})
    found, notes = completed(asked, {"config", "model.dropout"})
    assert found.model == replace(config.model, dropout=0.3)
    assert notes == (f"the shape is that of {source}: the configuration's model.d_ff gives way",)
    assert completed(found, given_in_code(found))[0] == found, "what is completed stays as it is"


def test_a_context_may_be_shorter_than_the_source_s(config: GPTConfig, source: Path, tmp_path: Path) -> None:
    def context(given: set[str], max_len: int, place: Path = source) -> int:
        asked = replace(config, init_from=str(place), model=replace(config.model, max_len=max_len))
        return completed(asked, given)[0].model.max_len

    assert context({"model.max_len"}, 8) == 8
    assert context({"config"}, 8) == 8
    assert context({"config"}, 32) == 16
    assert context(set(), 8) == 16, "that of the default configuration is nobody's wish"
    with pytest.raises(InputError, match=r"^model\.max_len must be at most 16, the context of \S+source, got 32$"):
        context({"model.max_len"}, 32)
    write_published(tmp_path / "long", "SmolLM2-135M", vocab_size=300, num_hidden_layers=1)
    assert context(set(), 8, tmp_path / "long") == DEFAULT_CONTEXT
    assert context({"model.max_len"}, 8192, tmp_path / "long") == 8192


def test_characters_that_the_source_lacks_are_an_error_with_the_ways_out(tuned: GPTConfig, tmp_path: Path) -> None:
    file = Path(tuned.data.source)
    file.write_text(file.read_text() + "Qué?\n")
    with pytest.raises(
        InputError,
        match=r"other\.txt has 4 characters that the vocabulary of \S+ lacks: '\?', 'Q', 'u', 'é'; take a text without "
        r"them \(--data\.unknown skip leaves them out\), or add --init_vocabulary shared, which gives them new rows$",
    ):
        train_gpt(tuned, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    skipping = with_training(replace(tuned, data=replace(tuned.data, unknown="skip")), max_steps=1)
    train_gpt(skipping, output_dir=tmp_path / "skipping")
    assert len(load_gpt(tmp_path / "skipping").tokenizer) == len(open_origin(str(tuned.init_from)).tokenizer)


def test_shared_tokens_keep_their_rows_and_others_are_new(
    tuned: GPTConfig, source: Path, first_weights: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    file = Path(tuned.data.source)
    file.write_text(file.read_text().replace("times", "mal"))
    shared = with_training(replace(tuned, init_vocabulary="shared"), max_steps=2, checkpoint_interval=1)
    train_gpt(shared, output_dir=tmp_path / "run")
    old, new = load_gpt(source), load_gpt(tmp_path / "run").tokenizer
    assert isinstance(old.tokenizer, CharTokenizer)
    assert isinstance(new, CharTokenizer)
    assert set(new.characters) - set(old.tokenizer.characters) == set("al")
    before, after = old.model.state_dict(), first_weights["model"]
    for token, character in enumerate(new.characters):
        for name in ("embedding.weight", "head.weight"):
            if character in old.tokenizer.characters:
                row = before[name][old.tokenizer.characters.index(character)]
                assert torch.equal(after[name][token], row), character
    rows = after["embedding.weight"][[new.characters.index(character) for character in "al"]]
    assert rows[0].ne(rows[1]).all()
    assert rows.std() == pytest.approx(before["embedding.weight"].std().item(), rel=0.5)
    assert torch.allclose(after["head.weight"][new.characters.index("a")], before["head.weight"].mean(0))
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("blocks."))
    shutil.rmtree(source)
    shutil.rmtree(tmp_path / "run/checkpoints" / checkpoint_name(2))
    train_gpt(shared, output_dir=tmp_path / "run", resume=True)


def test_rows_are_shared_by_bytes_and_by_what_ends_a_text() -> None:
    characters, of_bytes = CharTokenizer("aé"), make_tokenizer("bytes", [])
    subwords = make_tokenizer("bpe:260", ["abab abab"] * 9)
    weights = {"embedding.weight": torch.randn(257, 4)}
    changed, kept = with_shared_rows(weights, of_bytes, subwords, torch.Generator())
    assert kept == 257
    end, ends = subwords.end_of_text, of_bytes.end_of_text
    assert end is not None
    assert torch.equal(changed["embedding.weight"][end], weights["embedding.weight"][ends])
    a = subwords.encode("a").item()
    assert torch.equal(changed["embedding.weight"][a], weights["embedding.weight"][ord("a")])
    assert with_shared_rows(weights, of_bytes, characters, torch.Generator())[1] == 1, "é is two bytes"


def test_another_tokenizer_is_asked_for_with_what_becomes_of_the_rows(
    tuned: GPTConfig, source: Path, tmp_path: Path
) -> None:
    asked = replace(tuned, data=replace(tuned.data, tokenizer="bytes"))
    with pytest.raises(
        InputError, match=r"^data\.tokenizer bytes is not that of \S+source \(characters\): leave it out, "
    ):
        train_gpt(asked, output_dir=tmp_path / "run")
    found, notes = completed(asked, {"config"})
    assert found.data.tokenizer == "characters"
    assert notes[-1] == f"the tokenizer is that of {source}: data.tokenizer bytes gives way"
    copy = shutil.copy(source / "checkpoints/best/tokenizer.json", tmp_path / "own.json")
    asked = replace(tuned, data=replace(tuned.data, tokenizer=str(copy)))
    assert completed(asked, {"data.tokenizer"})[0].data.tokenizer == "characters"
    shared = replace(tuned, init_vocabulary="shared", data=replace(tuned.data, tokenizer="bytes"))
    assert completed(shared, {"data.tokenizer"})[0].data.tokenizer == "bytes"


def test_a_model_of_transformers_is_trained_on_and_resumed_without_it(
    tuned: GPTConfig, first_weights: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    write_published(folder, "GPT-2", vocab_size=300, n_embd=24, n_layer=2, n_head=2, n_positions=64)
    asked = replace(tuned, init_from=str(folder), model=ModelConfig(max_len=32))
    asked = with_training(asked, max_steps=2, checkpoint_interval=1, recompute="blocks", ema_decay=0.5)
    train_gpt(asked, output_dir=tmp_path / "run")
    assert same(first_weights["model"], base_weights(replace(asked, init_from=str(folder))))
    assert first_weights["model"]["positions.embedding.weight"].shape == (32, 24)
    kept = last_tensors(tmp_path / "run")
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "run/checkpoints" / checkpoint_name(2))
    train_gpt(asked, output_dir=tmp_path / "run", resume=True)
    assert last_tensors(tmp_path / "run") == kept
    assert load_gpt(tmp_path / "run").tokenizer.encode_prompt("1 is") == [17, 221, 73, 83]


class Squared(nn.Module):
    """A feed-forward layer of one's own."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(d_model, d_ff, bias=False), nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x_BTM: Tensor) -> Tensor:
        return self.down(self.up(x_BTM).relu().square())


class SquaredGPT(GPT):
    """A GPT with it."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        for block in self.blocks:
            block.feed_forward = Squared(config.d_model, config.d_ff)


class SquaredTask(GPTTask):
    """A task of one's own, with its own way of being made."""

    model_class = SquaredGPT

    def __init__(self, config: GPTConfig, *run: Any) -> None:
        super().__init__(config, *run)
        self.shows_samples = False


def test_a_class_of_one_s_own_begins_with_its_own_weights_alone(
    config: GPTConfig, tuned: GPTConfig, first_weights: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    with pytest.raises(
        InputError,
        match=r"^init_from: the weights of \S+ are not those of a SquaredGPT: blocks\.0\S+ is unknown, and 1 ",
    ):
        train_gpt(tuned, task=SquaredTask, output_dir=tmp_path / "other")
    train_gpt(with_training(config, max_steps=1), task=SquaredTask, output_dir=tmp_path / "own")
    tuned = with_training(replace(tuned, init_from=str(tmp_path / "own")), max_steps=2, checkpoint_interval=1)
    train_gpt(tuned, task=SquaredTask, output_dir=tmp_path / "run")
    assert same(first_weights["model"], Checkpoint(tmp_path / "own/checkpoints/last").tensors("model"))
    shutil.rmtree(tmp_path / "run/checkpoints" / checkpoint_name(2))
    train_gpt(tuned, task=SquaredTask, output_dir=tmp_path / "run", resume=True)


def test_a_mix_of_texts_is_read_by_the_source_s_tokenizer(tuned: GPTConfig, source: Path, tmp_path: Path) -> None:
    texts = [Path(tuned.data.source), tmp_path / "text.txt"]
    mixed = replace(tuned, data=TextConfig(mix=",".join(f"{file}=0.5" for file in texts)))
    train_gpt(with_training(mixed, max_steps=1), output_dir=tmp_path / "run")
    assert load_gpt(tmp_path / "run").tokenizer.to_json() == load_gpt(source).tokenizer.to_json()
    texts[1].write_text("Qu\n" * 400)
    with pytest.raises(InputError, match=r"^a mix, .* has 2 characters that the vocabulary of \S+ lacks: 'Q', 'u'; "):
        train_gpt(mixed, output_dir=tmp_path / "other")


def test_processes_that_read_other_weights_do_not_start(
    tuned: GPTConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(beginning, "gather_object", lambda said: [*said, ("0" * 64, None)])
    with pytest.raises(InputError, match=r"have the SHA-256 [0-9a-f]{64} on rank 0, 0{64} on rank 1: copy the same "):
        train_gpt(tuned, output_dir=tmp_path / "run")
    monkeypatch.setattr(beginning, "gather_object", lambda said: [*said, (None, InputError("its disk is gone"))])
    fault = r"^its disk is gone \(that is on rank 1: every machine needs the same files\)$"
    with pytest.raises(InputError, match=fault):
        train_gpt(tuned, output_dir=tmp_path / "run")


def test_other_machines_take_the_beginning_of_the_main_one(
    tuned: GPTConfig, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = replace(completed(tuned, set())[0], init_sha256="1" * 64)
    own = replace(
        tuned, init_from="elsewhere", model=ModelConfig(d_ff=8, dropout=0.3), training=TrainingConfig(max_steps=5)
    )
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert completed(own, set(), None, resume=True) == (own, ()), "the main machine may have a run"
    with pytest.raises(InputError, match=r"^init_from: elsewhere does not exist: "):
        completed(own, set())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(beginning, "gather_object", lambda said: [main, *said])
    expected = replace(main, model=replace(main.model, dropout=0.3), training=own.training)
    assert agreed(own) == expected
    source.rename(tmp_path / "elsewhere")
    assert agreed(own) == replace(expected, init_from="elsewhere")
    with pytest.raises(
        InputError, match=r"^init_from is '\S+' on rank 0, None on rank 1: start the same command on ev"
    ):
        agreed(replace(own, init_from=None))


def test_another_place_on_a_resume_is_none_that_the_run_began_with(
    tuned: GPTConfig, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_gpt(with_training(tuned, max_steps=1), output_dir=tmp_path / "run")
    began = read_yaml(tmp_path / "run/config.yaml")["init_from"]
    other = replace(with_training(tuned, max_steps=2), init_from="another")
    train_gpt(other, output_dir=tmp_path / "run", resume=True)
    assert read_yaml(tmp_path / "run/config.yaml")["init_from"] == began
    assert re.search(rf"weights     as of {began} when .*; another is not read\n", capsys.readouterr().out)


def test_a_run_that_began_otherwise_does_not_go_on_with_a_source(
    config: GPTConfig, tuned: GPTConfig, tmp_path: Path
) -> None:
    train_gpt(with_training(config, max_steps=1), output_dir=tmp_path / "run")
    with pytest.raises(InputError, match=r"^init_from: \S+run began without it: start another run, in another --out"):
        train_gpt(tuned, output_dir=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"init_sha256": "0" * 64}, r"^init_sha256 is for a run with init_from, got init_from null$"),
        ({"init_vocabulary": "shared"}, r"^init_vocabulary is for a run with init_from, got init_from null$"),
        ({"init_from": "x", "init_sha256": "0" * 63}, r"^init_sha256 must be null or 64 hex digits, got '0{63}'$"),
        ({"init_from": ""}, r"^init_from must be the folder of a run, of a checkpoint, or of a model of transformers"),
    ],
)
def test_what_a_beginning_may_be(config: GPTConfig, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        replace(config, **changes)


def test_an_encoder_decoder_is_no_source(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).save(1, tensors={}, state={"step": 1}, files={"vocabulary.json": "{}"})
    with pytest.raises(InputError, match=r"^init_from: \S+ is no GPT's: it has no tokenizer\.json$"):
        open_origin(str(tmp_path))


@pytest.mark.parametrize("script", ["plan", "bench_training", "bench_kv_cache"])
def test_what_measures_a_run_takes_the_shape_of_its_source(
    config: GPTConfig, source: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--config", str(ROOT / "configs/gpt/quick.yaml"), "--init_from", str(source)]
    monkeypatch.setattr(sys, "argv", [script, *given])
    _, found = import_module(f"launch.{script}").parse(False)
    assert found.model == replace(config.model, dropout=0.0)


@pytest.mark.ci
@pytest.mark.parametrize("in_shards", [False, True])
def test_two_processes_begin_alike_and_go_on_without_the_source(
    tuned: GPTConfig, source: Path, in_shards: bool, tmp_path: Path
) -> None:
    tuned = with_training(tuned, precision="fp64", max_steps=4, checkpoint_interval=2, eval_interval=2)
    train_gpt(tuned, output_dir=tmp_path / "one")
    file = tmp_path / "tuned.yaml"
    file.write_text(config_to_yaml(tuned))
    shards = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | (shards if in_shards else {})
    train = [*torchrun(2), TRAIN, "--config", file, "--output_dir", "two"]
    done = command(*train, cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert ("sharding    FSDP2" in done.stdout) == in_shards
    shutil.rmtree(source)
    shutil.rmtree(tmp_path / "two/checkpoints" / checkpoint_name(4))
    done = command(*train, "--resume", cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    expected, found = (Checkpoint(tmp_path / name / "checkpoints/last").tensors("model") for name in ("one", "two"))
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() < 1e-8, name


@pytest.mark.ci
@pytest.mark.parametrize("rank", [0, 2])
def test_two_machines_go_on_where_one_alone_has_the_run(tuned: GPTConfig, tmp_path: Path, rank: int) -> None:
    """Of an adapter each machine has the base; otherwise the source is gone."""
    tuned = with_training(tuned, max_steps=2, checkpoint_interval=1, eval_interval=0)
    (tmp_path / "tuned.yaml").write_text(config_to_yaml(replace(tuned, init_from=None)))
    given = ["--config", tmp_path / "tuned.yaml", "--init_from", "source", "--lora.rank", str(rank)]
    machines = [tmp_path / "machine0", tmp_path / "machine1"]
    for machine in machines:
        shutil.copytree(tmp_path / "source", machine / "source", symlinks=True)

    def launch(*options: str) -> None:
        port = free_port()
        with ThreadPoolExecutor(2) as pool:
            world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
            world |= {"MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
            line = [TRAIN, *given, "--output_dir", "run", *options]
            waits = [pool.submit(command, *line, cwd=m, RANK=str(n), **world) for n, m in enumerate(machines)]
            for done in (wait.result() for wait in waits):
                assert done.returncode == 0, done.stderr

    launch()
    shutil.copytree(machines[0] / "run", tmp_path / "whole", symlinks=True)
    shutil.rmtree(machines[0] / "run/checkpoints" / checkpoint_name(2))
    if not rank:
        shutil.rmtree(machines[0] / "source")
        shutil.rmtree(machines[1] / "source")
    launch("--resume")
    assert last_tensors(machines[0] / "run") == last_tensors(tmp_path / "whole")
    assert not (machines[1] / "run").exists()


def test_the_command_says_what_gives_way_and_resumes_by_itself(source: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("model: {d_model: 64, max_len: 8}\ntraining: {max_steps: 2, batch_size: 4}\ntracking: none\n")
    options = ["--config", file, "--init_from", "source", "--data.source", "other.txt", "--output_dir", "run"]
    (tmp_path / "other.txt").write_text((tmp_path / "text.txt").read_text()[::-1])
    done = command(TRAIN, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "note        the shape is that of source: the configuration's model.d_model gives way\n" in done.stdout
    assert "note        a context of 8 tokens, of 16 in source\n" in done.stdout
    shutil.rmtree(source)
    more = "--training.max_steps", "3"
    done = command(TRAIN, "--output_dir", "run", "--resume", *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "weights     as of " in done.stdout
    done = command(TRAIN, *options, "--resume", *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert RunFolder(tmp_path / "run").read_metrics()[-1]["step"] == 3
    done = command(TRAIN, *options[:4], "--model.d_ff", "9", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: init_from: source does not exist: expected the folder of a run, ")


def test_a_vocabulary_of_one_token_has_no_deviation() -> None:
    old, new = CharTokenizer("a"), CharTokenizer("abc")
    weights, kept = with_shared_rows({"embedding.weight": torch.ones(1, 4)}, old, new, torch.Generator())
    assert kept == 1
    assert weights["embedding.weight"].equal(torch.ones(3, 4))
