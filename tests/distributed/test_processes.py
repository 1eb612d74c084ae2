"""Real processes over gloo: more of them make a step faster, never different."""

import os
import re
import shlex
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from forking import python
from helpers import OF_GPT2, ROOT, command, free_port, ranks, read_metrics, torchrun, wait_for_step, with_training
from seq2seq_models import small_config

from data.config import TextConfig
from gpt.config import GPTConfig
from gpt.task import train_gpt
from seq2seq.task import train_seq2seq
from training.config.command_line import config_to_yaml
from training.config.sections import RunConfig
from training.storage.checkpoint import Checkpoint
from training.storage.run_folder import RunFolder

ENVIRONMENT = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def write(config: RunConfig, folder: Path) -> Path:
    file = folder / "config.yaml"
    file.write_text(config_to_yaml(config))
    return file


@pytest.fixture
def exact(config: GPTConfig) -> GPTConfig:
    """20 steps in fp64 without dropout: what is left to differ is a mistake."""
    config = with_training(config, precision="fp64", max_steps=20, eval_interval=10, ema_decay=0.9)
    config = with_training(config, eval_raw_weights=True)
    return replace(config, model=replace(config.model, dropout=0.0))


@pytest.mark.nightly
def test_two_processes_learn_answers_like_one(exact: GPTConfig, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "{n} is ", "answer": "{n * n}"}}\n' for n in range(300)))
    data = TextConfig(source=str(rows), prompt_column="prompt", answer_column="answer", tokenizer="bpe:270")
    exact = with_training(replace(exact, data=data), max_steps=4, eval_interval=2, ema_decay=0, eval_raw_weights=False)
    train_gpt(exact, output_dir=tmp_path / "one")
    train = [*torchrun(2), ROOT / "launch/train_gpt.py", "--config", write(exact, tmp_path), "--output_dir", "many"]
    done = command(*train, cwd=tmp_path, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    for one, many in zip(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "many"), strict=True):
        for key in {"train_loss", "val_loss", "tokens"} & one.keys():
            assert many[key] == pytest.approx(one[key], abs=1e-8, rel=0)


@pytest.mark.parametrize(
    ("processes", "optimizer", "accumulation_steps"),
    [
        pytest.param(2, "adamw", 1, marks=pytest.mark.nightly),
        pytest.param(2, "muon", 1, marks=pytest.mark.nightly),
        pytest.param(2, "adamw", 3, marks=pytest.mark.nightly),
        pytest.param(3, "muon", 1, marks=pytest.mark.nightly),
        (2, "muon", 2),
    ],
)
def test_several_processes_give_the_losses_of_one(
    exact: GPTConfig, tmp_path: Path, processes: int, optimizer: Any, accumulation_steps: int
) -> None:
    exact = replace(exact, optimizer=replace(exact.optimizer, name=optimizer))
    if optimizer == "adamw":
        exact = replace(exact, model=replace(exact.model, head_dim=12, **OF_GPT2))
    train_gpt(exact, output_dir=tmp_path / "one")
    file = write(with_training(exact, accumulation_steps=accumulation_steps), tmp_path)
    train = [*torchrun(processes), ROOT / "launch/train_gpt.py", "--config", file, "--output_dir", "many"]
    done = command(*train, cwd=tmp_path, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"device      cpu, {processes} processes, 1 threads each, fp64") == 1
    one, many = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "many")
    assert len(one) == len(many) == 20
    for a, b in zip(one, many, strict=True):
        assert a["tokens"] == b["tokens"]
        assert b["train_loss"] == pytest.approx(a["train_loss"], abs=1e-8, rel=0)
        assert ("val_loss" in a) == (a["step"] in (10, 20))
        for key in {"val_loss", "raw_val_loss"} & (a.keys() | b.keys()):
            assert b[key] == pytest.approx(a[key], abs=1e-8, rel=0), key
    if accumulation_steps == 1:
        measure = [ROOT / "launch/evaluate.py", "--checkpoint", "one/checkpoints/last", "--split", "val"]
        measured = command(*torchrun(processes), *measure, cwd=tmp_path, **ENVIRONMENT)
        assert measured.returncode == 0, measured.stderr
        assert measured.stdout.count(f"loss                {one[-1]['val_loss']:.4f} nats per character\n") == 1


@pytest.mark.nightly
def test_gradients_sent_in_half_the_bytes_train_about_as_well(
    exact: GPTConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_gpt(exact, output_dir=tmp_path / "one")
    file = write(with_training(exact, gradient_compression="fp16", accumulation_steps=2), tmp_path)
    train = [*torchrun(2), ROOT / "launch/train_gpt.py", "--config", file, "--output_dir", "two"]
    done = command(*train, cwd=tmp_path, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    one, two = ([line["train_loss"] for line in read_metrics(tmp_path / run)] for run in ("one", "two"))
    differences = [abs(a - b) for a, b in zip(one, two, strict=True)]
    assert differences[0] < 1e-8
    assert 1e-7 < max(differences) < 1e-3
    refused = command(*train, "--training.gradient_compression", "bf16", "--resume", cwd=tmp_path, **ENVIRONMENT)
    message = "error: training.gradient_compression bf16 needs GPUs, this run is on cpu: use fp16 or none"
    assert refused.stderr.count(message) == 1
    train_gpt(exact, output_dir=tmp_path / "two", resume=True)
    said = "training.gradient_compression was 'fp16', is now 'none': the steps to come differ for it"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    "accumulation_steps", [pytest.param(1, marks=pytest.mark.nightly), pytest.param(3, marks=pytest.mark.ci)]
)
def test_two_processes_train_the_encoder_decoder_as_one_does(tmp_path: Path, accumulation_steps: int) -> None:
    """Sources and targets of different lengths, half of them at random places: each process pads its own share."""
    config = with_training(small_config(), precision="fp64", max_steps=20, eval_interval=10, label_smoothing=0.1)
    config = replace(config, model=replace(config.model, random_positions=0.5))
    train_seq2seq(config, output_dir=tmp_path / "one")
    file = write(with_training(config, accumulation_steps=accumulation_steps), tmp_path)
    train = [*torchrun(2), ROOT / "launch/train_seq2seq.py", "--config", file, "--output_dir", "two"]
    done = command(*train, cwd=tmp_path, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("prediction") == 2, "a table of samples at each evaluation, from one process"
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert len(one) == len(two) == 20
    for a, b in zip(one, two, strict=True):
        assert a["tokens"] == b["tokens"]
        assert ("val_loss" in a) == ("exact_match" in a) == (a["step"] in (10, 20))
        for key in {"train_loss", "val_loss", "exact_match", "token_accuracy"} & (a.keys() | b.keys()):
            assert b[key] == pytest.approx(a[key], abs=1e-8, rel=0), key


@pytest.mark.ci
def test_a_run_can_change_its_number_of_processes_twice_on_the_way(exact: GPTConfig, tmp_path: Path) -> None:
    exact = with_training(exact, checkpoint_interval=5, keep_checkpoints=5)
    train_gpt(exact, output_dir=tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "changing", symlinks=True)
    train = [ROOT / "launch/train_gpt.py", "--config", write(exact, tmp_path), "--output_dir", "changing", "--resume"]
    for launcher, first in ((torchrun(2), 5), ([], 10)):  # steps 6 to 10 on two processes, 11 to 20 on one again
        for folder in (tmp_path / "changing/checkpoints").glob("step-*"):
            if folder.name > f"step-{first:08d}":
                shutil.rmtree(folder)
        done = command(*launcher, *train, cwd=tmp_path, **(ENVIRONMENT if launcher else {}))
        assert done.returncode == 0, done.stderr
        assert f"resuming    after step {first}" in done.stdout
    one, changing = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "changing")
    assert [line["step"] for line in changing] == list(range(1, 21))
    for a, b in zip(one, changing, strict=True):
        for key in {"train_loss", "val_loss", "raw_val_loss"} & a.keys():
            assert b[key] == pytest.approx(a[key], abs=1e-8, rel=0), key
    assert any(a["train_loss"] != b["train_loss"] for a, b in zip(one, changing, strict=True)), "two did compute"


@pytest.mark.parametrize(
    "processes", [pytest.param(2, marks=pytest.mark.ci), pytest.param(3, marks=pytest.mark.nightly)]
)
def test_several_processes_resume_to_the_bit(config: GPTConfig, tmp_path: Path, processes: int) -> None:
    file = write(with_training(config, batch_size=12), tmp_path)
    train = [*torchrun(processes), ROOT / "launch/train_gpt.py", "--config", file]
    for folder in ("whole", "run"):
        done = command(*train, "--output_dir", folder, cwd=tmp_path, **ENVIRONMENT)
        assert done.returncode == 0, done.stderr
    (tmp_path / "run/checkpoints/step-00000012/state.json").unlink()
    done = command(*train, "--output_dir", "run", "--resume", cwd=tmp_path, **ENVIRONMENT)
    assert "resuming    after step 10" in done.stdout, done.stderr
    model = "checkpoints/last/model.safetensors"
    assert (tmp_path / "whole" / model).read_bytes() == (tmp_path / "run" / model).read_bytes()


@pytest.mark.ci
def test_no_thread_outlives_the_processes_connection(config: GPTConfig, tmp_path: Path) -> None:
    """A thread of gloo that is left when the interpreter ends may abort the process, now and then."""
    script = tmp_path / "threads.py"
    script.write_text(
        "import gc, os, sys\n"
        "from launch.train_gpt import main\n"
        "main()\n"
        "gc.collect()\n"
        "threads = [open(f'/proc/self/task/{task}/comm').read() for task in os.listdir('/proc/self/task')]\n"
        "count = sum('gloo' in name for name in threads)\n"
        "print(f'threads of gloo: {count}')\n"
    )
    train = ["--config", write(config, tmp_path), "--output_dir", "run"]
    done = command(*torchrun(2), script, *train, cwd=tmp_path, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("threads of gloo: 0") == 2


@pytest.mark.ci
def test_work_that_is_under_way_at_the_end_does_not_hold_a_process_up(config: GPTConfig, tmp_path: Path) -> None:
    """A thread of gloo gives its tensors back to Python; who waits for the thread must let Python run."""
    script = tmp_path / "late.py"
    script.write_text(
        "import os, time\n"
        "import torch\n"
        "from training.loop import Trainer\n"
        "from launch.train_gpt import main\n"
        "leave = Trainer.shutdown\n"
        "def leave_late(trainer):\n"
        "    time.sleep(1.0 if os.environ['RANK'] == '0' else 0.0)\n"
        "    torch.distributed.all_reduce(torch.ones(1), async_op=True)\n"
        "    leave(trainer)\n"
        "Trainer.shutdown = leave_late\n"
        "main()\n"
    )
    train = ["--config", write(config, tmp_path), "--output_dir", "run"]
    done = command(*torchrun(2), script, *train, cwd=tmp_path, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr


@pytest.mark.ci
def test_accelerate_launch_with_a_file_starts_real_processes(config: GPTConfig, tmp_path: Path) -> None:
    done = command(
        *("-m", "accelerate.commands.launch", "--config_file", ROOT / "accelerate_config.yaml", "--num_processes", "2"),
        *("--main_process_port", free_port(), ROOT / "launch/train_gpt.py"),
        *("--config", write(config, tmp_path), "--output_dir", "run"),
        cwd=tmp_path,
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 0, done.stderr
    assert "device      cpu, 2 processes" in done.stdout


@pytest.mark.ci
@pytest.mark.parametrize("fast_rank", ["0", "1"])
def test_processes_on_unequal_devices_agree_on_a_precision(tmp_path: Path, fast_rank: str) -> None:
    script = tmp_path / "unequal.py"
    script.write_text(
        "import os\n"
        "from training.runtime import device, precision\n"
        f"precision.cpu_has_fast_bf16 = lambda: os.environ['RANK'] == '{fast_rank}'\n"
        "setup = device.make_accelerator('auto')\n"
        "accelerator = setup.accelerator\n"
        "said = f'{accelerator.mixed_precision} {setup.description} {setup.warnings}'\n"
        "print(f'rank {accelerator.process_index}: {said}')\n"
        "accelerator.end_training()\n"
    )
    done = command(*torchrun(2), script, cwd=tmp_path, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    same = "no cpu, 2 processes, 1 threads each, fp32 (cpu is not fast at bf16) []"
    assert all(f"rank {rank}: {same}" in done.stdout for rank in range(2))


@pytest.mark.ci
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output_dir", "run"], "error: run already holds a run"),
        (["--data.source", "nowhere"], "error: data.source nowhere does not exist"),
        (["--tracking", "wandb", "--output_dir", "new"], "error: Weights & Biases refuses ("),
    ],
)
def test_an_error_is_said_once_and_nobody_hangs(
    config: GPTConfig, tmp_path: Path, options: list[str], message: str
) -> None:
    RunFolder(tmp_path / "run").create(config_to_yaml(config))
    train = [*torchrun(2), ROOT / "launch/train_gpt.py", "--config", write(config, tmp_path), *options]
    done = command(*train, cwd=tmp_path, WANDB_MODE="offlin", **ENVIRONMENT)
    assert done.returncode != 0
    assert done.stderr.count(message) == 1
    assert not (tmp_path / "new/config.yaml").exists(), "the corrected command can follow"


@pytest.mark.ci
def test_processes_with_other_options_or_another_text_do_not_start(config: GPTConfig, tmp_path: Path) -> None:
    """As on a second machine whose command, code or files are not the same."""
    script = tmp_path / "unequal.py"
    script.write_text(
        "import os, sys\n"
        "os.environ |= {'LOCAL_RANK': '0', 'LOCAL_WORLD_SIZE': '1'}\n"
        "from launch.train_gpt import main\n"
        "from training.runtime.errors import exit_code\n"
        "options = sys.argv.pop().split()\n"
        "sys.argv += options if os.environ['RANK'] == '1' else []\n"
        "sys.exit(exit_code(main))\n"
    )
    other = tmp_path / "other.txt"
    shutil.copy(config.data.source, other)
    train = [*torchrun(2), script, "--config", write(config, tmp_path), "--output_dir", "run"]
    done = command(*train, "--training.log_interval 7", cwd=tmp_path, **ENVIRONMENT)
    message = "error: training.log_interval is 1 on rank 0, 7 on rank 1: start the same command on every machine"
    assert done.stderr.count(message) == 1, done.stderr
    done = command(*train, f"--data.source {other}", cwd=tmp_path, **ENVIRONMENT)
    assert done.returncode == 0, "the same text in another place"
    other.write_text(other.read_text().replace("0", "9", 1))
    done = command(*train, "--resume", f"--data.source {other}", cwd=tmp_path, **ENVIRONMENT)
    assert done.stderr.count("error: the data's SHA-256 is '") == 1, done.stderr


def start_endless(config: GPTConfig, folder: Path, checkpoint_interval: int) -> "subprocess.Popen[str]":
    """Two processes that train until they are told otherwise."""
    config = with_training(config, max_steps=100_000, eval_interval=0, checkpoint_interval=checkpoint_interval)
    file = write(config, folder)
    arguments = [*torchrun(2), ROOT / "launch/train_gpt.py", "--config", file, "--output_dir", "run"]
    return subprocess.Popen(
        [*python(), *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.ci
def test_sigterm_to_the_launcher_stops_all_processes_with_a_checkpoint(config: GPTConfig, tmp_path: Path) -> None:
    with start_endless(config, tmp_path, checkpoint_interval=0) as process:
        wait_for_step(process, 1)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert errors.count("stopped: saved step") == 1
    assert (tmp_path / "run/checkpoints/last/manifest.json").exists()


POISONED = """
import math, os, sys
from launch.train_gpt import main
from training import loss, step
from training.runtime.errors import exit_code
import torch

poisoned = False

def launch(device_step, at, *arguments, **options):
    global poisoned
    poisoned = at == 6 and os.environ["RANK"] == "1"
    return sound_launch(device_step, at, *arguments, **options)

sound, sound_launch = loss.loss_sum, step.DeviceStep.launch
step.DeviceStep.launch = launch
loss.loss_sum = lambda *arguments: sound(*arguments) * (math.nan if poisoned and torch.is_grad_enabled() else 1.0)
sys.exit(exit_code(main))
"""


@pytest.mark.ci
@pytest.mark.parametrize("allowed", [0, 1])
def test_a_loss_that_is_not_finite_on_one_rank_is_one_for_all(config: GPTConfig, tmp_path: Path, allowed: int) -> None:
    script = tmp_path / "poisoned.py"
    script.write_text(POISONED)
    file = write(with_training(config, max_nonfinite_steps=allowed), tmp_path)
    done = command(*torchrun(2), script, "--config", file, "--output_dir", "run", cwd=tmp_path, **ENVIRONMENT)
    where = "at step 6 the loss is nan (rank 1: epoch 0, windows at characters "
    if allowed:
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"warning     {where}") == 1
        assert [line["step"] for line in read_metrics(tmp_path / "run") if "train_loss" not in line] == [6]
    else:
        assert done.stderr.count(f"error: {where}") == 1, done.stderr
        assert re.findall(r"exitcode  : (\d+)", done.stderr) == ["4"] * 2
        saved = tmp_path / "run/checkpoints"
        assert os.readlink(saved / "last") == os.readlink(saved / "best") == "step-00000005", "no weight has changed"


@pytest.mark.ci
def test_a_bit_that_differs_between_ranks_stops_the_run_at_the_next_evaluation(
    config: GPTConfig, tmp_path: Path
) -> None:
    script = tmp_path / "parted.py"
    script.write_text(
        "import os, sys\n"
        "import torch\n"
        "from launch.train_gpt import main\n"
        "from training.optimizer import MuonAdamW\n"
        "from training.runtime.errors import exit_code\n"
        "step, steps = MuonAdamW.step, iter(range(1, 100))\n"
        "def flip(optimizer, closure=None):\n"
        "    step(optimizer, closure)\n"
        "    if next(steps) == 7 and os.environ['RANK'] == '1':\n"
        "        weight = optimizer.param_groups[0]['params'][0].detach()\n"
        "        weight.view(torch.int32)[0, 0] ^= 1\n"
        "MuonAdamW.step = flip\n"
        "sys.exit(exit_code(main))\n"
    )
    file = write(with_training(config, precision="bf16", eval_interval=5, checkpoint_interval=4), tmp_path)
    done = command(*torchrun(2), script, "--config", file, "--output_dir", "run", cwd=tmp_path, **ENVIRONMENT)
    assert "Warning" not in done.stderr, done.stderr
    message = "error: at step 10 the weights of rank 1 are not those of rank 0: "
    assert done.stderr.count(message) == 1, done.stderr
    assert "checkpoints/step-00000005: test the cards, remove step-00000008 beside it, and go on with" in done.stderr
    assert re.findall(r"exitcode  : (\d+)", done.stderr) == ["1"] * 2
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "val_loss" in line] == [5]


@pytest.mark.parametrize("background", [False, pytest.param(True, marks=pytest.mark.ci)])
def test_a_save_that_fails_ends_all_processes_at_once(config: GPTConfig, tmp_path: Path, background: bool) -> None:
    """In the background it is the next one, which fails as well."""
    file = write(with_training(config, background_saves=background), tmp_path)
    train = [*torchrun(2), ROOT / "launch/train_gpt.py", "--config", file, "--output_dir", "run"]
    # The shell counts in KiB: optimizer.safetensors is larger.
    shell = shlex.join([*python(), *map(str, train)])
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 24; {shell}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    place = f"run/checkpoints/step-0000000{5 if background else 4}"
    message = f"error: cannot write checkpoint {place}: File too large; there is no checkpoint yet"
    assert done.stderr.count(message) == 1, done.stderr
    assert "exitcode  : 5" in done.stderr


@pytest.mark.ci
def test_a_process_that_waits_too_long_for_another_says_so(tmp_path: Path) -> None:
    script = tmp_path / "late.py"
    script.write_text(
        "import os, sys, time\n"
        "import torch\n"
        "from training.runtime.device import make_accelerator\n"
        "from training.runtime.errors import exit_code\n"
        "from training.runtime.processes import naming_lost_processes\n"
        "def main():\n"
        "    accelerator = make_accelerator('fp32', timeout=3).accelerator\n"
        "    with naming_lost_processes(accelerator):\n"
        "        if accelerator.process_index == 1:\n"
        "            time.sleep(60)\n"
        "        accelerator.reduce(torch.ones(1), 'sum')\n"
        "sys.exit(exit_code(main))\n"
    )
    start = time.monotonic()
    done = command(*torchrun(2), script, cwd=tmp_path, timeout=100, **ENVIRONMENT)
    assert done.stderr.count("error: lost touch with another process (") == 1, done.stderr
    assert "silent after 3 s" in done.stderr
    assert time.monotonic() - start < 50


@pytest.mark.ci
@pytest.mark.parametrize(
    ("machines", "said"),
    [
        (1, ["done by rank 0, failed in rank 0"] * 2),
        (2, ["done by rank 0, disk: refused in rank 1", "done by rank 1, disk: refused in rank 1"]),
    ],
)
def test_what_one_process_of_a_machine_does_is_known_to_its_others_and_fails_in_all(
    tmp_path: Path, machines: int, said: list[str]
) -> None:
    script = tmp_path / "once.py"
    script.write_text(
        "import os, sys\n"
        "rank, machines = os.environ['RANK'], int(sys.argv[1])\n"
        "if machines == 2:\n"
        "    os.environ |= {'LOCAL_RANK': '0', 'LOCAL_WORLD_SIZE': '1'}\n"
        "from training.runtime.device import make_accelerator\n"
        "from training.runtime.errors import InputError\n"
        "from training.runtime.processes import once_per_machine\n"
        "accelerator = make_accelerator('fp32').accelerator\n"
        "def fail():\n"
        "    if machines == 1:\n"
        "        raise InputError(f'failed in rank {rank}')\n"
        "    if rank == '1':\n"
        "        raise OSError(5, f'refused in rank {rank}', 'disk')\n"
        "said = once_per_machine(lambda: f'done by rank {rank}')\n"
        "try:\n"
        "    once_per_machine(fail)\n"
        "except InputError as error:\n"
        "    print(f'rank {rank}: {said}, {error}')\n"
        "accelerator.end_training()\n"
    )
    done = command(*torchrun(2), script, str(machines), cwd=tmp_path, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert all(f"rank {rank}: {line}\n" in done.stdout for rank, line in enumerate(said)), done.stdout


@pytest.mark.ci
def test_what_one_process_of_a_machine_does_may_take_longer_than_a_collective(tmp_path: Path) -> None:
    script = tmp_path / "patient.py"
    script.write_text(
        "import time\n"
        "from training.runtime.device import make_accelerator\n"
        "from training.runtime.processes import once_per_machine\n"
        "accelerator = make_accelerator('fp32', timeout=2.0).accelerator\n"
        "print(once_per_machine(lambda: time.sleep(4) or 'all have waited'))\n"
        "accelerator.end_training()\n"
    )
    done = command(*torchrun(2), script, cwd=tmp_path, **ENVIRONMENT)
    assert (done.returncode, done.stdout.count("all have waited")) == (0, 2), done.stderr


@pytest.mark.ci
def test_one_process_of_a_machine_makes_tokens_and_all_map_them(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a line of text\n" * 5000)
    script = tmp_path / "mapping.py"
    script.write_text(
        "from data.cache import tokens\n"
        "from data.config import TextConfig\n"
        "from data.text import load_source\n"
        "from training.runtime.device import make_accelerator\n"
        "accelerator = make_accelerator('fp32').accelerator\n"
        "made, write = [], tokens.write_tokens\n"
        "tokens.write_tokens = lambda *given, **named: made.append(1) or write(*given, **named)\n"
        "data = TextConfig(source='text.txt', tokenizer='bpe:300')\n"
        "found = tokens.tokenized(load_source(data), data)\n"
        "print('made' if made else 'found', found.training.tokens_N.filename, found.sha256)\n"
        "accelerator.end_training()\n"
    )
    done = command(*torchrun(2), script, cwd=tmp_path, HF_HOME=str(tmp_path / "home"), **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    first, second = sorted(line.split() for line in done.stdout.splitlines())
    assert (first[0], second[0], first[1:]) == ("found", "made", second[1:])


@pytest.mark.ci
def test_trainings_of_one_launch_follow_each_other(config: GPTConfig, tmp_path: Path) -> None:
    script = tmp_path / "twice.py"
    script.write_text(
        "import sys\n"
        "from launch.train_gpt import main\n"
        "options = sys.argv[1:]\n"
        "for run in ('first', 'second', 'third'):\n"
        "    sys.argv[1:] = [*options, '--output_dir', run]\n"
        "    main()\n"
    )
    file = write(with_training(config, max_steps=2), tmp_path)
    done = command(*torchrun(2), script, "--config", file, cwd=tmp_path, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    model = "checkpoints/last/model.safetensors"
    first, *others = [(tmp_path / run / model).read_bytes() for run in ("first", "second", "third")]
    assert others == [first] * 2


def test_a_signal_to_one_process_stops_both_at_the_same_step(config: GPTConfig, tmp_path: Path) -> None:
    with start_endless(config, tmp_path, checkpoint_interval=0) as process:
        wait_for_step(process, 5)
        ranks(tmp_path)[1].terminate()
        _, errors = process.communicate(timeout=60)
    assert errors.count("stopped: saved step") == 1
    assert re.findall(r"exitcode  : (\d+)", errors) == ["3"] * 2
    step = int(re.findall(r"stopped: saved step (\d+)", errors)[0])
    assert Checkpoint(tmp_path / "run/checkpoints/last").state["step"] == step
    assert read_metrics(tmp_path / "run")[-1]["step"] == step


@pytest.mark.ci
def test_a_dead_process_ends_the_launch_in_seconds(config: GPTConfig, tmp_path: Path) -> None:
    with start_endless(config, tmp_path, checkpoint_interval=10) as process:
        wait_for_step(process, 25)
        ranks(tmp_path)[1].kill()
        killed = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert time.monotonic() - killed < 20
    assert "(SIGKILL)" in errors, "torchrun names what happened"
    assert errors.count("error: lost touch with another process (") == 1
    assert "Traceback" not in errors.split("lost touch")[0], "one line and not a traceback"
    assert (tmp_path / "run/checkpoints/last/manifest.json").exists()


@pytest.mark.nightly
def test_restarted_processes_find_nothing_of_those_before(tmp_path: Path) -> None:
    """The addresses of processes that are gone lead nowhere."""
    script = tmp_path / "restarted.py"
    script.write_text(
        "import os, signal\n"
        "from torch.distributed.distributed_c10d import _get_default_store\n"
        "from training.runtime.device import make_accelerator\n"
        "accelerator = make_accelerator('fp32').accelerator\n"
        "store = _get_default_store()\n"
        "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "    store.set('address', 'here')\n"
        "    assert store.check(['address'])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "found = store.check(['address'])\n"
        "print(f'rank {accelerator.process_index} finds an address: {found}')\n"  # in one piece: two processes speak
        "accelerator.end_training()\n"
    )
    done = command(*torchrun(2, "--max_restarts", "1"), script, cwd=tmp_path, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert all(f"rank {rank} finds an address: False" in done.stdout for rank in range(2))


@pytest.mark.nightly
@pytest.mark.parametrize("rendezvous", [[], ["--standalone"]])
@pytest.mark.parametrize("killed", ["0", "1"])
def test_max_restarts_takes_a_run_past_a_killed_process(
    config: GPTConfig, tmp_path: Path, killed: str, rendezvous: list[str]
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal\n"
        "from data.batches.windows import TextData\n"
        "from gpt.task import GPTTask\n"
        "from launch.train_gpt import main\n"
        "rank, restart = os.environ['RANK'], os.environ['TORCHELASTIC_RESTART_COUNT']\n"
        "class KilledData(TextData):\n"
        "    def training_batch(self, first, count):\n"
        f"        if restart == '0' and rank == '{killed}' and first >= 56:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().training_batch(first, count)\n"
        "class KilledTask(GPTTask):\n"
        "    data_class = KilledData\n"
        "main(KilledTask)\n"
    )
    options = ["--config", write(config, tmp_path), "--resume", "--output_dir"]
    whole = command(*torchrun(2), ROOT / "launch/train_gpt.py", *options, "whole", cwd=tmp_path, **ENVIRONMENT)
    assert whole.returncode == 0, whole.stderr
    restarting = torchrun(2, *rendezvous, "--max_restarts", "1")
    done = command(*restarting, script, *options, "run", cwd=tmp_path, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert "resuming    after step 5" in done.stdout
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, 13))
    model = "checkpoints/last/model.safetensors"
    assert (tmp_path / "whole" / model).read_bytes() == (tmp_path / "run" / model).read_bytes()
