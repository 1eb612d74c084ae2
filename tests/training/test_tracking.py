"""What the trackers are sent, read back from their own files."""

import json
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import ROOT, command, read_metrics, with_training

from gpt.config import GPTConfig
from gpt.task import train_gpt
from training import tracking
from training.config.command_line import config_to_yaml
from training.runtime.errors import InputError
from training.storage.run_folder import RunFolder


def read_tensorboard(run: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[int, str]]]]:
    """Curves and texts, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    shown = {
        tag: [(event.step, make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }
    texts = {tag for tag in shown if tag.endswith("text_summary")}
    return (
        {tag: [(step, value.item()) for step, value in shown[tag]] for tag in shown.keys() - texts},
        {tag: [(step, value.item().decode()) for step, value in shown[tag]] for tag in texts},
    )


def read_wandb(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of history in the record file of an offline run: a log of LevelDB's format, with protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = next(folder.glob("run-*.wandb")).read_bytes()
    place, block, record = 7, 32768, b""
    while place + 7 <= len(content):
        left = block - place % block
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            parsed, record = Record.FromString(record), b""
            if parsed.HasField("history"):
                yield {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in parsed.history.item
                }


def test_tensorboard_shows_every_curve_the_configuration_and_the_samples(config: GPTConfig, tmp_path: Path) -> None:
    config = replace(config, tracking="tensorboard")
    train_gpt(config, output_dir=tmp_path / "run")
    scalars, texts = read_tensorboard(tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    for key, tag in {
        "train_loss": "loss/train",
        "val_loss": "loss/validation",
        "perplexity": "validation/perplexity",
        "bits_per_byte": "validation/bits_per_byte",
        "bits_per_character": "validation/bits_per_character",
        "learning_rate": "optimizer/learning_rate",
        "grad_norm": "optimizer/grad_norm",
        "tokens_per_second": "speed/tokens_per_second",
        "epoch": "progress/epoch",
    }.items():
        expected = [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in lines if key in line]
        assert scalars.pop(tag) == expected, tag
    assert set(scalars) == {"progress/tokens", "progress/seconds"}
    shown = {tag: [(step, text.replace("\n    ", "\n")[4:-1]) for step, text in texts[tag]] for tag in texts}
    assert shown["configuration/text_summary"] == [(0, config_to_yaml(config))]
    samples = [(step, RunFolder(tmp_path / "run").read_sample(step)) for step in (5, 10, 12)]
    assert shown["sample/text_summary"] == samples


def test_after_a_resume_tensorboard_shows_each_step_once(config: GPTConfig, tmp_path: Path) -> None:
    config = replace(config, tracking="tensorboard")
    train_gpt(config, output_dir=tmp_path / "run")
    for log_interval in (1, 2):
        (tmp_path / "run/checkpoints/step-00000012/state.json").unlink()
        config = with_training(config, log_interval=log_interval)
        train_gpt(config, output_dir=tmp_path / "run", resume=True)
    scalars, texts = read_tensorboard(tmp_path / "run")
    assert [step for step, _ in scalars["loss/train"]] == [*range(1, 11), 12]
    assert [step for step, _ in texts["sample/text_summary"]] == [5, 10, 12]
    assert [step for step, _ in texts["configuration/text_summary"]] == [0, 11]
    assert "log_interval: 2" in texts["configuration/text_summary"][1][1]


def test_a_run_that_starts_over_takes_its_curves_back(config: GPTConfig, tmp_path: Path) -> None:
    config = replace(config, tracking="tensorboard")
    train_gpt(config, output_dir=tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    train_gpt(with_training(config, max_steps=3), output_dir=tmp_path / "run", resume=True)
    scalars, texts = read_tensorboard(tmp_path / "run")
    assert [step for step, _ in scalars["loss/train"]] == [1, 2, 3]
    assert [step for step, _ in texts["configuration/text_summary"]] == [0]


def test_a_resume_after_a_clock_went_back_shows_its_steps(config: GPTConfig, tmp_path: Path) -> None:
    config = replace(config, tracking="tensorboard")
    for days in (2, 1, 0):
        train_gpt(config, output_dir=tmp_path / "run", resume=True)
        (tmp_path / "run/checkpoints/step-00000012/state.json").unlink()
        newest = max((tmp_path / "run/tensorboard").iterdir(), key=lambda file: file.stat().st_mtime_ns)
        stamp = newest.name.split(".")[3]
        newest.rename(newest.with_name(newest.name.replace(stamp, f"{int(stamp) + days * 86400:010d}")))
    scalars, texts = read_tensorboard(tmp_path / "run")
    assert [step for step, _ in scalars["loss/train"]] == list(range(1, 13))
    assert [step for step, _ in texts["sample/text_summary"]] == [5, 10, 12]
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 3


def test_none_writes_no_curves(config: GPTConfig, tmp_path: Path) -> None:
    train_gpt(config, output_dir=tmp_path / "none")
    assert not (tmp_path / "none/tensorboard").exists()
    assert not (tmp_path / "none/wandb").exists()


def wandb_folders(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*"))


@pytest.mark.ci
def test_wandb_records_a_run_offline_without_an_account_and_a_resumed_one_whole(
    config: GPTConfig, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(config_to_yaml(replace(config, tracking="both")))
    arguments = [ROOT / "launch/train_gpt.py", "--config", "config.yaml", "--output_dir", "run", "--resume"]
    nobody = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_API_KEY": ""}
    first = command(*arguments, cwd=tmp_path, **nobody)
    assert first.returncode == 0, first.stderr
    assert re.search(r"tracking    TensorBoard, in run/tensorboard\n", first.stdout)
    synced = re.search(r"tracking    Weights & Biases, offline; to upload: wandb sync (\S+)\n", first.stdout)
    assert synced is not None
    assert wandb_folders(tmp_path / "run") == [tmp_path / synced[1]]
    assert "wandb:" not in first.stdout + first.stderr
    history = list(read_wandb(tmp_path / synced[1]))
    assert [line["_step"] for line in history] == list(range(1, 13))
    for line, logged in zip(history, read_metrics(tmp_path / "run"), strict=True):
        assert line["loss/train"] == logged["train_loss"]
        assert line.get("loss/validation") == logged.get("val_loss")
        assert line.get("validation/perplexity") == logged.get("perplexity")
        assert any(key.startswith("sample") for key in line) == ("val_loss" in logged)
    tables = [json.loads(file.read_text()) for file in (tmp_path / synced[1]).rglob("*.table.json")]
    samples = [[step, RunFolder(tmp_path / "run").read_sample(step)] for step in (5, 10, 12)]
    assert sorted(table["data"][0] for table in tables) == samples

    (tmp_path / "run/checkpoints/step-00000012/state.json").unlink()
    second = command(*arguments, cwd=tmp_path, **nobody)
    assert second.returncode == 0, second.stderr
    folders = wandb_folders(tmp_path / "run")
    assert len(folders) == 2
    assert len({folder.name.rsplit("-", 1)[1] for folder in folders}) == 1, "one id"
    again = list(read_wandb(folders[1]))
    assert [line["_step"] for line in again] == list(range(1, 13)), "the newest folder holds the whole run"
    assert [line["loss/train"] for line in again] == [line["loss/train"] for line in history]
    assert len(list(folders[1].rglob("*.table.json"))) == 3


def test_a_refusal_of_wandb_is_one_line(config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse(**options: Any) -> None:
        raise wandb.Error("permission denied\nfor you")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setattr(tracking, "_has_account", lambda: True)
    with pytest.raises(InputError, match=r"refuses \(permission denied for you\): set WANDB_MODE=offline, or choose"):
        train_gpt(replace(config, tracking="wandb"), output_dir=tmp_path / "run")
    monkeypatch.undo()
    train_gpt(config, output_dir=tmp_path / "run")


def test_online_only_what_wandb_lacks_is_sent_again(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    sent: list[int] = []
    given: list[dict[str, Any]] = []

    def init(**options: Any) -> SimpleNamespace:
        given.append(options)
        return SimpleNamespace(
            step=8,
            dir="files",
            url="https://somewhere",
            log=lambda values, step: sent.append(step),
            finish=lambda: None,
        )

    monkeypatch.setattr(wandb, "init", init)
    configured: list[dict[str, Any]] = []
    update = SimpleNamespace(update=lambda values, allow_val_change: configured.append(values))
    monkeypatch.setattr(wandb, "config", update)
    monkeypatch.setattr(tracking, "_has_account", lambda: True)
    config = replace(config, tracking="wandb")
    train_gpt(config, output_dir=tmp_path / "run")
    (tmp_path / "run/checkpoints/step-00000012/state.json").unlink()
    sent.clear()
    train_gpt(config, output_dir=tmp_path / "run", resume=True)
    assert sent == [8, 9, 10, 11, 12], "8 to 10 from the run's files, 11 and 12 trained again"
    assert [options["mode"] for options in given] == ["online", "online"]
    assert given[0]["id"] == given[1]["id"]
    assert configured == [asdict(config)] * 2
    assert all(options["resume"] == "allow" for options in given)


@pytest.mark.ci
def test_a_service_of_wandb_that_is_killed_costs_its_curves_and_one_line(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # That of another test.
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, subprocess, sys\n"
        "from gpt.task import GPTTask\n"
        "from launch.train_gpt import main\n"
        "from training.runtime.errors import exit_code\n"
        "class Task(GPTTask):\n"
        "    def metrics(self, val_loss):\n"
        "        service = subprocess.check_output(['pgrep', '-P', str(os.getpid()), 'wandb-core'], text=True)\n"
        "        os.kill(int(service), signal.SIGKILL)\n"
        "        self.metrics = super().metrics\n"
        "        return super().metrics(val_loss)\n"
        "sys.exit(exit_code(lambda: main(Task)))\n"
    )
    (tmp_path / "config.yaml").write_text(config_to_yaml(replace(config, tracking="wandb")))
    done = command(script, "--config", "config.yaml", "--output_dir", "run", cwd=tmp_path, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert re.findall("warning .*", done.stdout) == [
        "warning     Weights & Biases: Connection lost; it ends here, and the run goes on"
    ]
    assert len(read_metrics(tmp_path / "run")) == 12
