"""Several texts with weights: exact shares, epochs of their own, one tokenizer, validation over all of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from helpers import read_metrics, with_training

from data.batches.mixed import MixedData
from data.batches.windows import TextData
from data.cache.tokens import sha256
from data.config import TextConfig
from data.mix import parse_mix
from data.text import load_source
from gpt.config import GPTConfig
from gpt.task import GPTTask, load_gpt, measure_split, train_gpt
from training.config.sections import ScheduleConfig
from training.runtime.errors import InputError
from training.task import batches_vary
from training.tracking import curves

CONTEXT = 9


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two texts, whose characters say which one they are of and where they stand."""
    for name, first, length in (("a.txt", 0x4E00, 1000), ("b.txt", 0x6E00, 400)):
        (tmp_path / name).write_text("".join(chr(first + i) for i in range(length)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mixed(mix: str = "a.txt=0.7,b.txt=0.3", seed: int = 1) -> MixedData:
    data = TextConfig(mix=mix)
    return MixedData(load_source(data), CONTEXT, seed, data)


def source_of(data: MixedData, first: int, count: int) -> torch.Tensor:
    """Whether each window of a batch is of the second text."""
    sizes = [
        ord(character)
        for character in data.tokenizer.decode(data.training_batch(first, count).inputs[0][:, 0].tolist())
    ]
    return torch.tensor(sizes) >= 0x6E00


def test_weights_become_whole_windows_of_a_block() -> None:
    assert parse_mix("a.txt=0.7, b/=0.3") == {"a.txt": 700, "b/": 300}
    assert parse_mix("a=2,b=1") == {"a": 668, "b": 334}
    assert parse_mix("hub:x/y=0.125,b=c.txt=12.875") == {"hub:x/y": 10 * 1, "b=c.txt": 10 * 103}
    assert parse_mix("a=0.000001,b=0.999999") == {"a": 1, "b": 999_999}
    for wrong in ("", "a", "a=", "=1", "a=0", "a=-1", "a=1,", "a=1,a=2", "a=x", "a=1e3", "a=0.0000001,b=1", "a=nan"):
        assert parse_mix(wrong) == {}, wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": "a.txt"}, "data.mix must be SOURCE=WEIGHT, several with commas and each source once, with weights "),
        ({"mix": "a.txt=1", "source": "b.txt"}, "data.mix names the sources: leave out data.source, got 'b.txt'"),
        ({"mix": "hub:x=1"}, "data.source must be "),
        ({"mix": "a.txt=1,missing.txt=1"}, "missing.txt"),
    ],
)
def test_a_mix_that_is_none_is_one_clear_line(folder: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_source(TextConfig(**options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_options_are_for_those_sources_that_they_are_for() -> None:
    mix = TextConfig(mix="a.txt=1,rows.jsonl=1,python=1,hub:x/y=1", column="body", include="*.py", revision="main")
    assert [part.column for part in mix.parts.values()] == ["text", "body", "text", "body"]
    assert [part.include for part in mix.parts.values()] == ["*.py", "*.py", "*.py", None]
    assert [part.revision for part in mix.parts.values()] == [None, None, None, "main"]
    with pytest.raises(InputError, match=r"data\.subset is for sources hub:OWNER/NAME only, and data\.mix has none"):
        TextConfig(mix="a.txt=1,python=1", subset="en")
    with pytest.raises(InputError, match="data.tokenizer must be characters, bytes"):
        TextConfig(mix="a.txt=1", tokenizer="words")


def test_a_learnt_tokenizer_is_of_all_sources_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("all work and no play. " * 100)
    Path("b.txt").write_text("x = lambda: numbers[7]\n" * 100)
    data = TextConfig(mix="a.txt=1,b.txt=1", tokenizer="bpe:280")
    mix = MixedData(load_source(data), CONTEXT, 1, data)
    known = {mix.tokenizer.token_bytes(token) for token in range(len(mix.tokenizer))}
    assert {b" play", b" lambda"} <= known
    assert len(mix.tokenizer) == 280
    assert sha256(load_source(data), data, mix.tokenizer) == mix.sha256


def test_a_block_has_of_each_source_exactly_its_share_in_an_order_of_its_own(folder: Path) -> None:
    data = mixed()
    blocks = [source_of(data, first, 1000) for first in (0, 1000, 10**12)]
    for of_b in blocks:
        assert int(of_b.sum()) == 300
        assert 15 <= int(of_b[:100].sum()) <= 45, "spread over the block"
    assert len({tuple(of_b.tolist()) for of_b in blocks}) == 3
    assert not torch.equal(source_of(mixed(seed=2), 0, 1000), blocks[0])
    assert not batches_vary(data), "windows are alike"


def test_a_batch_depends_on_its_place_alone(folder: Path) -> None:
    data, first = mixed(), 3 * 1000 - 7
    together = data.training_batch(first, 20)
    alone = [mixed().training_batch(first + i, 1) for i in (13, 4, 19)]
    for row, batch in zip((13, 4, 19), alone, strict=True):
        assert torch.equal(together.inputs[0][row], batch.inputs[0][0])
        assert torch.equal(together.targets_BT[row], batch.targets_BT[0])
    assert torch.equal(together.inputs[0][:, 1:], together.targets_BT[:, :-1])


def test_each_source_goes_through_epochs_of_its_own(folder: Path) -> None:
    data = mixed()
    windows = {False: 900 // CONTEXT, True: 360 // CONTEXT}
    of_b, starts = source_of(data, 0, 2000), data.training_batch(0, 2000).inputs[0]
    for which, number in windows.items():
        mine = starts[of_b == which]
        for epoch in range(len(mine) // number):
            read = mine[epoch * number : (epoch + 1) * number].flatten()
            assert len(read.unique()) == number * CONTEXT, "every window once"
    assert data.samples_per_epoch == sum(windows.values())
    assert data.notes[0] == "an epoch of the mix reads a.txt 0.98 times, b.txt 1.05 times"
    assert data.origin == "a mix, 0.7 of a.txt, 0.3 of b.txt"


def test_samples_are_described_by_source(folder: Path) -> None:
    data = mixed()
    of_b = source_of(data, 5, 10)
    said = data.describe_samples(5, 10).split("; b.txt: ")
    assert said[0].startswith("a.txt: epoch ")
    assert [part.count(";") + 1 for part in said] == [int((~of_b).sum()), int(of_b.sum())]


def test_validation_is_over_every_target_of_all_sources(folder: Path) -> None:
    data = mixed()
    single = [
        TextData(load_source(part), CONTEXT, 1, tokenizer=data.tokenizer)
        for part in TextConfig(mix="a.txt=1,b.txt=1").parts.values()
    ]
    targets = sorted(t for batch in data.validation_batches(3) for t in batch.targets_BT.flatten().tolist())
    assert targets == sorted(
        t for text in single for b in text.validation_batches(3) for t in b.targets_BT.flatten().tolist()
    )
    assert data.validation_targets == 99 + 39
    assert data.validation_bytes == sum(text.validation_bytes for text in single)
    ranks = [b.num_targets for rank in (0, 1) for b in data.validation_batches(3, rank, 2)]
    assert sum(ranks) == data.validation_targets
    assert len(data.tokenizer) == 1400


def test_a_mix_is_known_by_its_texts_and_weights(folder: Path) -> None:
    (folder / "same.txt").write_text((folder / "a.txt").read_text())
    assert mixed("same.txt=7,b.txt=3").sha256 == mixed().sha256
    others = [mixed(mix).sha256 for mix in ("a.txt=0.6,b.txt=0.4", "b.txt=0.3,a.txt=0.7", "a.txt=0.7,same.txt=0.3")]
    assert len({mixed().sha256, *others}) == 4


def test_a_run_of_a_mix_names_the_loss_of_each_source_and_goes_on_to_the_bit(
    config: GPTConfig, text_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(text_file.parent)
    (text_file.parent / "other.txt").write_text("all work and no play makes 7 dull.\n" * 40)
    schedule = ScheduleConfig(name="constant")
    config = replace(config, data=TextConfig(mix="text.txt=3,other.txt=1"), schedule=schedule)
    train_gpt(config, output_dir=Path("whole"))
    lines = read_metrics(Path("whole"))
    last, targets = lines[-1], {name: part.validation_targets for name, part in GPTTask(config).data.parts.items()}
    means = {name: last[f"val_loss/{name}"] for name in targets}
    assert last["val_loss"] == pytest.approx(
        sum(means[name] * targets[name] for name in targets) / sum(targets.values())
    )
    said = (
        f"validation loss {last['val_loss']:.4f} (text.txt {means['text.txt']:.4f}, other.txt {means['other.txt']:.4f})"
    )
    assert said in capsys.readouterr().out
    assert curves({"val_loss/b/": 1.0}) == {"loss/validation/b/": 1.0}
    train_gpt(with_training(config, max_steps=6), output_dir=Path("parts"))
    train_gpt(config, output_dir=Path("parts"), resume=True)
    ends = read_metrics(Path("parts"))[6:]
    for name in ("train_loss", "grad_norm", "val_loss", "val_loss/other.txt"):
        assert [line.get(name) for line in ends] == [line.get(name) for line in lines[6:]]
    measured = measure_split(Accelerator(cpu=True), load_gpt(Path("whole/checkpoints/last")), "val")
    assert measured.loss == pytest.approx(last["val_loss"], abs=1e-6)
    assert measured.metrics["bits_per_byte"] == pytest.approx(last["bits_per_byte"], abs=1e-6)
    other = replace(config, data=TextConfig(mix="text.txt=1,other.txt=1"))
    with pytest.raises(InputError, match="cannot go on with .*: data_sha256 was "):
        train_gpt(other, output_dir=Path("parts"), resume=True)
