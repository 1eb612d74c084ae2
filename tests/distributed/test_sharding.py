"""FSDP2 by the shipped configuration, over gloo: shards change what a rank holds, and no number."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from accelerate import Accelerator
from forking import python
from helpers import OF_GPT2, ROOT, command, free_port, read_metrics, with_training
from seq2seq_models import small_config

from data.config import TextConfig
from gpt.config import GPTConfig, LoraConfig, ModelConfig
from gpt.task import GPTTask, train_gpt
from seq2seq.task import train_seq2seq
from training.config.command_line import config_to_yaml
from training.config.sections import OptimizerConfig, RunConfig, ScheduleConfig, TrainingConfig
from training.loop import Trainer
from training.runtime.device import Runtime
from training.storage.checkpoint import Checkpoint, CheckpointStore
from training.storage.run_folder import RunFolder

LOSSES = {"train_loss", "val_loss", "raw_val_loss", "grad_norm", "exact_match", "token_accuracy"}
TENSORS = ("model", "optimizer", "ema")


class Launch(NamedTuple):
    """What came of a launch."""

    folder: Path
    said: str
    errors: str
    held: list[dict[str, Any]]

    def tensors(self, run: str, step: int) -> list[bytes]:
        """The bytes of a checkpoint's tensors."""
        place = self.folder / run / f"checkpoints/step-{step:08d}"
        return [(place / f"{name}.safetensors").read_bytes() for name in TENSORS]


def exact(
    folder: Path, *, optimizer: Any, batch_size: int = 8, heads: int = 2, shape: Any = None, **training: Any
) -> GPTConfig:
    """10 steps in fp64 without dropout: what is left to differ is a mistake. Gradients are clipped at most steps."""
    text = folder / "text.txt"
    text.write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(300)))
    steps = {"max_steps": 10, "eval_interval": 5, "checkpoint_interval": 5, "log_interval": 1, "ema_decay": 0.9}
    steps |= {"max_grad_norm": 0.3, "eval_raw_weights": True, "keep_checkpoints": 5}
    return GPTConfig(
        name="small",
        tracking="none",
        model=ModelConfig(
            num_layers=2,
            d_model=16,
            num_heads=heads,
            d_ff=36,
            max_len=16,
            dropout=0.0,
            tie_embeddings=optimizer == "adamw",
            **(shape or {}),
        ),
        data=TextConfig(source=str(text)),
        training=TrainingConfig(**{"precision": "fp64", "batch_size": batch_size} | steps | training),
        optimizer=OptimizerConfig(name=optimizer, learning_rate=5e-3, weight_decay=0.1),
        schedule=ScheduleConfig(name="linear", warmup_steps=2),
    )


def case(folder: Path, name: str, config: RunConfig, **more: Any) -> dict[str, Any]:
    """What `sharded_runs.py` is told of a run."""
    file = folder / f"{name}.yaml"
    file.write_text(config_to_yaml(config))
    kind = "gpt" if isinstance(config, GPTConfig) else "seq2seq"
    return {"name": name, "kind": kind, "arguments": ["--config", str(file)]} | more


def launch(folder: Path, processes: int, cases: list[dict[str, Any]]) -> Launch:
    """Train all, in one launch, by the file for FSDP2."""
    (folder / "cases.json").write_text(json.dumps(cases))
    done = command(
        *("-m", "accelerate.commands.launch", "--config_file", ROOT / "configs/accelerate/fsdp2.yaml"),
        *("--num_processes", str(processes), "--main_process_port", free_port(), "--no_python", *python(), "-u"),
        *(ROOT / "tests/distributed/sharded_runs.py", "cases.json"),
        cwd=folder,
        CUDA_VISIBLE_DEVICES="",
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    held = [json.loads((folder / f"held-{rank}.json").read_text()) for rank in range(processes)]
    return Launch(folder, done.stdout, done.stderr, held)


def assert_same_curves(one: Path, many: Path, tolerance: float = 1e-8) -> None:
    a, b = read_metrics(one), read_metrics(many)
    assert [line["step"] for line in a] == [line["step"] for line in b] == list(range(1, len(a) + 1))
    for x, y in zip(a, b, strict=True):
        assert x.keys() & LOSSES == y.keys() & LOSSES
        for key in x.keys() & LOSSES:
            assert y[key] == pytest.approx(x[key], abs=tolerance, rel=0), (x["step"], key)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Two processes, and beside each run the same one in one process, in the folder `one-NAME`."""
    folder = tmp_path_factory.mktemp("sharded")
    adamw = exact(folder, optimizer="adamw", shape={**OF_GPT2, "head_dim": 12})
    muon = exact(folder, optimizer="muon", accumulation_steps=2)
    seq2seq = with_training(small_config(), precision="fp64", eval_interval=6, max_steps=12, label_smoothing=0.1)
    fp32 = exact(folder, optimizer="muon", precision="fp32")
    bf16 = exact(folder, optimizer="muon", shape={**OF_GPT2, "head_dim": 12}, precision="bf16")
    lora = replace(adamw, init_from=str(folder / "one-adamw"), lora=LoraConfig(rank=3))
    for name, config in {"adamw": adamw, "muon": muon, "fp32": fp32, "bf16": bf16, "lora": lora}.items():
        train_gpt(config, output_dir=folder / f"one-{name}")
    train_seq2seq(seq2seq, output_dir=folder / "one-seq2seq")
    return launch(
        folder,
        2,
        [
            case(folder, "adamw", with_training(adamw, recompute="blocks", on_save_error="continue"), failing=5),
            case(folder, "muon", with_training(muon, compile="blocks")),
            case(folder, "seq2seq", with_training(seq2seq, recompute="attention")),
            case(folder, "lora", lora),
            case(folder, "lora-ddp", lora, sharded=False),
            case(folder, "bf16", bf16),
            case(folder, "fp32", fp32),
            case(folder, "resumed", fp32, copy="fp32", without=[10]),
            case(folder, "as-ddp", fp32, copy="fp32", sharded=False, only_save=True),
            case(folder, "of-one", fp32, copy="one-fp32", only_save=True),
        ],
    )


@pytest.mark.ci
class TestTwoProcesses:
    """All of one launch."""

    @pytest.mark.parametrize("run", ["lora", "lora-ddp"])
    def test_an_adapter_learns_what_it_does_in_one_process(self, two: Launch, run: str) -> None:
        assert_same_curves(two.folder / "one-lora", two.folder / run)
        for held in two.held:
            for share, whole in (held[run][group] for group in TENSORS):
                assert share == whole if run == "lora-ddp" else 0.3 < share / whole < 0.7

    @pytest.mark.parametrize("run", ["adamw", "muon", "seq2seq"])
    def test_shards_give_the_numbers_of_one_process(self, two: Launch, run: str) -> None:
        """Tied and untied, accumulated, averaged, clipped, recomputed, compiled; samples by the main process alone."""
        assert_same_curves(two.folder / f"one-{run}", two.folder / run)
        lines = two.said.splitlines()
        assert sum(line.startswith("sharding    FSDP2: ") for line in lines) == 8
        assert two.held[0]["muon"]["compile"] == "blocks"
        if run != "seq2seq":
            samples = [(two.folder / name / "samples/step-00000010.txt").read_text() for name in (run, f"one-{run}")]
            assert samples[0] == samples[1]

    def test_a_rank_holds_half_of_weights_optimizer_state_and_average(self, two: Launch) -> None:
        for run, groups in {"adamw": TENSORS, "muon": TENSORS, "seq2seq": TENSORS[:2]}.items():
            for group in groups:
                shares = [held[run][group] for held in two.held]
                assert sum(share for share, _ in shares) == shares[0][1], "each number is held once"
                assert all(0.45 < share / whole < 0.55 for share, whole in shares)
        assert all(share == whole for held in two.held for share, whole in [held["as-ddp"]["model"]])

    def test_checkpoints_are_those_of_ddp_and_of_one_process(self, two: Launch, tmp_path: Path) -> None:
        assert two.tensors("saved-as-ddp", 10) == two.tensors("fp32", 10)
        assert two.tensors("saved-of-one", 10) == two.tensors("one-fp32", 10)
        assert two.tensors("fp32", 10) != two.tensors("one-fp32", 10)
        folder = two.folder / "fp32"
        config = exact(tmp_path, optimizer="muon", precision="fp32")
        trainer = Trainer(
            Runtime(Accelerator(cpu=True), "fp32", "", [], None), GPTTask(config), config, RunFolder(folder)
        )
        trainer.restore(Checkpoint(folder / "checkpoints/step-00000010"))
        trainer.saver.store = CheckpointStore(two.folder / "saved-alone/checkpoints")
        trainer.saver.write(trainer.counters)
        assert two.tensors("saved-alone", 10) == two.tensors("fp32", 10)

    def test_a_resume_goes_on_to_the_bit(self, two: Launch) -> None:
        assert two.tensors("resumed", 10) == two.tensors("fp32", 10)

    def test_a_save_that_fails_in_the_main_process_leaves_no_rank_behind(self, two: Launch) -> None:
        assert two.said.count("step-00000005: No space left on device; the run goes on") == 1
        assert not (two.folder / "adamw/checkpoints/step-00000005").exists()
        assert (two.folder / "adamw/checkpoints/step-00000010/manifest.json").exists()

    def test_weights_that_are_sent_in_bf16_train_as_well(self, two: Launch) -> None:
        one, many = (read_metrics(two.folder / name) for name in ("one-bf16", "bf16"))
        differences = [abs(a["train_loss"] - b["train_loss"]) for a, b in zip(one, many, strict=True)]
        assert differences[0] < 1e-3
        assert max(differences) < 2e-2

    def test_nothing_is_left_of_it(self, two: Launch) -> None:
        assert [held["threads"] for held in two.held] == [0, 0]
        assert "Warning" not in two.errors


@pytest.mark.nightly
def test_rows_that_do_not_divide_by_three_ranks_are_shared_unevenly(tmp_path: Path) -> None:
    """The last of three has no row of a norm of 4 numbers, and fewer than the others of most matrices."""
    config = exact(tmp_path, optimizer="muon", batch_size=12, heads=4)
    train_gpt(config, output_dir=tmp_path / "one")
    save = case(tmp_path, "of-one", config, copy="one", only_save=True)
    three = launch(tmp_path, 3, [case(tmp_path, "many", config), save])
    assert_same_curves(tmp_path / "one", tmp_path / "many")
    shares = [held["many"]["model"][0] for held in three.held]
    assert shares[0] == shares[1] > shares[2]
    assert sum(shares) == three.held[0]["many"]["model"][1]
    assert three.tensors("saved-of-one", 10) == three.tensors("one", 10)
