"""Whether training and decoding are right on a device; each check ends before the next begins, and is written down.

    PYTHONPATH=. python tests/gpu/checks.py --json FILE [--device cpu] [--tiny]

What is in FILE already is not checked again, and a check that took the process with it counts as failed: so this can be
started again after a crash. Exits with 1 where a check failed.
"""

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.config.sections import OptimizerConfig, RunConfig, ScheduleConfig, TrainingConfig  # Before torch.

# isort: split
import torch

from data.batches.windows import TextData
from data.config import PairConfig, TextConfig
from decoding.decoder import Decoder, convert
from decoding.generation import generate
from decoding.machine import with_random_weights
from decoding.sampling import GREEDY
from gpt.config import GPTConfig
from gpt.config import ModelConfig as GPTModel
from gpt.model import GPT
from gpt.task import GPTTask, train_gpt
from seq2seq.config import ModelConfig as PairModel
from seq2seq.config import Seq2SeqConfig
from seq2seq.task import train_seq2seq
from training import compiling
from training.benchmark.measure import fit, temporary_trainer
from training.doctor.all_reduce import GLOO, P2P, time_all_reduce
from training.doctor.cards import look_at_cards
from training.planning.check import check as plan_and_train
from training.run import Result
from training.runtime.errors import InputError, StoppedBySignal
from training.runtime.machine import describe_machine
from training.storage.checkpoint import Checkpoint
from training.storage.run_folder import RunFolder

parser = argparse.ArgumentParser()
parser.add_argument("--json", required=True, help="where to write")
parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="what the process sees")
parser.add_argument("--tiny", action="store_true", help="models of seconds")
options = parser.parse_args()
ON_GPU = options.device == "cuda"
ROOT = Path(__file__).parents[2]
TEXT = "".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(3000))
WIDTH, LENGTH, BATCH = (32, 32, 8) if options.tiny else (256, 256, 32)
if options.tiny:
    compiling.BACKEND = "aot_eager"  # Traced as for inductor, which would take minutes on a CPU.
Check = Callable[[Path], Mapping[str, Any]]
CHECKS: dict[str, Check] = {}


class LeftOut(Exception):
    """A check that has no meaning here."""


def check(function: Check) -> Check:
    """Put a function among the checks: it takes an empty folder, and returns numbers to keep, or fails."""
    CHECKS[function.__name__] = function
    return function


def gpt_config(folder: Path, steps: int = 12, **changes: Any) -> GPTConfig:
    """A short training of a small GPT, with dropout and Muon."""
    text = folder / "text.txt"
    text.write_text(TEXT)
    loop = {"precision": "fp32", "max_steps": steps, "batch_size": BATCH, "eval_interval": 0, "log_interval": 1}
    return GPTConfig(
        name="check",
        tracking="none",
        model=GPTModel(num_layers=2, d_model=WIDTH, num_heads=2, d_ff=2 * WIDTH, max_len=LENGTH, dropout=0.1),
        data=TextConfig(source=str(text)),
        training=TrainingConfig(**(loop | {"checkpoint_interval": 0} | changes)),
        optimizer=OptimizerConfig(name="muon", learning_rate=2e-3),
        schedule=ScheduleConfig(name="linear", warmup_steps=4),
    )


def pair_config(folder: Path, **changes: Any) -> Seq2SeqConfig:
    """The same of an encoder-decoder that copies."""
    config = gpt_config(folder, **changes)
    return Seq2SeqConfig(
        name="check",
        tracking="none",
        model=PairModel(num_layers=1, d_model=WIDTH, num_heads=2, d_ff=WIDTH, max_len=64, dropout=0.1),
        data=PairConfig(min_length=12 if options.tiny else 1, max_length=12, val_samples=32),
        training=config.training,
        optimizer=config.optimizer,
        schedule=config.schedule,
    )


def train(config: RunConfig, folder: Path, **how: Any) -> Result:
    """Train either model."""
    return (train_gpt if isinstance(config, GPTConfig) else train_seq2seq)(config, output_dir=folder, **how)


def losses(config: RunConfig, folder: Path) -> list[float]:
    """The training losses of all steps."""
    return [line["train_loss"] for line in train(config, folder).run.read_metrics()]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's last checkpoint."""
    last = Checkpoint((run / "checkpoints/last").resolve())
    return {f"{file}/{name}": tensor for file in ("model", "optimizer") for name, tensor in last.tensors(file).items()}


def assert_same_bits(first: Path, second: Path) -> int:
    """Two runs ended with the same tensors; returns how many."""
    a, b = tensors(first), tensors(second)
    assert a.keys() == b.keys()
    differ = [name for name, tensor in a.items() if not torch.equal(tensor, b[name])]
    assert not differ, f"{len(differ)} of {len(a)} tensors differ, {differ[0]} among them"
    return len(a)


@check
def precisions_learn_alike(folder: Path) -> Mapping[str, Any]:
    """Losses of some steps in fp32, bf16 and, on a GPU, fp16."""
    found = {
        precision: losses(gpt_config(folder, precision=precision), folder / precision)
        for precision in ("fp32", "bf16", *(["fp16"] if ON_GPU else []))
    }
    apart = {name: max(abs(a - b) for a, b in zip(found["fp32"], found[name], strict=True)) for name in found}
    assert found["fp32"][-1] < found["fp32"][0] - 0.1, f"nothing was learnt: {found['fp32']}"
    assert max(apart.values()) < 0.05, f"further from fp32 than 0.05: {apart}"
    return {"losses": found, "apart": apart}


def apart(config: RunConfig, other: RunConfig, folder: Path) -> dict[str, Any]:
    """How far the losses of two trainings are from each other; the first one's steps are compiled.

    They add in another order, and optimizers enlarge what comes of that.
    """
    compiled, plain = losses(config, folder / "compiled"), losses(other, folder / "eager")
    seconds = [
        line["compile_seconds"] for line in RunFolder(folder / "compiled").read_metrics() if "compile_seconds" in line
    ]
    if not seconds and not ON_GPU:
        raise LeftOut("nothing can be compiled here")
    assert seconds, "nothing was compiled"
    furthest = max(abs(a - b) for a, b in zip(compiled, plain, strict=True))
    assert furthest < 5e-3, f"the losses are {furthest:.2g} apart: {compiled}, {plain}"
    return {"furthest_apart": furthest, "compile_seconds": seconds[0]}


@check
def a_compiled_gpt_is_the_eager_one(folder: Path) -> Mapping[str, Any]:
    """The losses of some steps, compiled as a whole."""
    return apart(gpt_config(folder, compile="model"), gpt_config(folder, compile="off"), folder)


class Watched:
    """A tracker that lets nothing wait for the device from step 8 to step 16."""

    description = "watch"

    def log(self, metrics: Mapping[str, float], sample: str | None) -> None:
        if ON_GPU and metrics["step"] in (8, 16):
            torch.cuda.set_sync_debug_mode("error" if metrics["step"] == 8 else "default")

    def finish(self) -> None:
        """Nothing is left to do."""


@check
def no_step_waits_for_the_device(folder: Path) -> Mapping[str, Any]:
    """Steps are launched, read a step late and reported, while torch raises an error at what waits for the device."""
    config = gpt_config(folder, log_interval=4, ema_decay=0.9, precision="bf16", compile="off")
    with temporary_trainer(lambda: GPTTask(config), config, 24) as trainer:
        try:
            fit(trainer, Watched())
        except RuntimeError as error:
            ours = [frame for frame in traceback.extract_tb(error.__traceback__) if str(ROOT) in frame.filename]
            where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "nowhere"
            raise AssertionError(f"{where}: {error}") from error
        finally:
            if ON_GPU:
                torch.cuda.set_sync_debug_mode("default")
    if not ON_GPU:
        raise LeftOut("a CPU's steps wait for nothing else")
    return {"steps_watched": 8}


@check
def deterministic_gives_the_same_bits(folder: Path) -> Mapping[str, Any]:
    """`training.deterministic`, twice, in the precision that trainings have here."""
    config = gpt_config(folder, deterministic=True, precision="bf16" if ON_GPU else "fp32")
    for name in ("first", "second"):
        train(config, folder / name)
    return {"tensors": assert_same_bits(folder / "first", folder / "second")}


class StopsItself(TextData):
    """A text that asks for a stop as the batch of the sixth step is cut."""

    armed = True

    def training_batch(self, first: int, count: int) -> Any:
        if StopsItself.armed and first >= 5 * BATCH:
            StopsItself.armed = False
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_batch(first, count)


class StoppedTask(GPTTask):
    """A GPT on such a text."""

    data_class = StopsItself


@check
def a_stop_resumes_to_the_bit(folder: Path) -> Mapping[str, Any]:
    """A run that a signal stops and that goes on ends where one ends that was not stopped."""
    config = gpt_config(folder, deterministic=True, precision="bf16" if ON_GPU else "fp32")
    train(config, folder / "whole")
    stopped = 0
    try:
        train(config, folder / "stopped", task=StoppedTask)
    except StoppedBySignal:
        state = Checkpoint((folder / "stopped/checkpoints/last").resolve()).text("state.json")
        stopped = json.loads(state)["counters"]["step"]
    assert 3 <= stopped <= 8, f"the signal of step 6 stopped the run after step {stopped}"
    train(config, folder / "stopped", task=StoppedTask, resume=True)
    return {"stopped_after": stopped, "tensors": assert_same_bits(folder / "whole", folder / "stopped")}


@check
def the_doctor_finds_no_fault(folder: Path) -> Mapping[str, Any]:
    """Of torch, driver and cards; and NCCL adds up, though a single process has no other to send to."""
    found = list(look_at_cards())
    assert not [str(finding) for finding in found if finding.status == "fault"]
    outcome = time_all_reduce(1, *(("nccl", P2P) if ON_GPU else ("gloo", GLOO)), 60.0)
    assert not outcome.fault, outcome.fault
    return {"findings": [str(finding) for finding in found], "latency": outcome.latency}


@check
def recorded_decoding_writes_what_eager_writes(folder: Path) -> Mapping[str, Any]:
    """The compiled step, which is a CUDA graph on a GPU; on a CPU the native step stands in for it."""
    device, config = torch.device(options.device), gpt_config(folder)
    model = with_random_weights(GPT(config.model, 65), 1, device)
    found, prompts = {}, [[1, 2, 3], [4, 5, 6]]
    for precision in ("fp32", "bf16"):
        for mode in ("eager", "compiled" if ON_GPU else "native"):
            decoder, how = Decoder(convert(model, precision), mode), {"sampling": GREEDY, "seeds": [0, 0]}
            steps = generate(decoder, prompts, max_new_tokens=LENGTH - 8, **how)
            chosen = [(step.tokens_B.tolist(), step.log_probabilities_B.tolist()) for step in steps]
            found[precision, mode] = [tokens for tokens, _ in chosen], [numbers for _, numbers in chosen]
    agree = {}
    for precision in ("fp32", "bf16"):
        (a, _), (b, _) = (found[key] for key in found if key[0] == precision)
        agree[precision] = sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
    assert agree["fp32"] == 1, f"the texts differ: {agree}"
    return {"share_of_equal_tokens": agree}


@contextmanager
def one_gibibyte() -> Iterator[None]:
    """A card that has no more left for torch."""
    if not ON_GPU:
        raise LeftOut("needs a GPU")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 2**30) / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@check
def too_much_memory_is_one_line(folder: Path) -> Mapping[str, Any]:
    """A batch that the card cannot hold at once."""
    with one_gibibyte():
        try:
            train(gpt_config(folder, batch_size=4096, micro_batch_size=4096), folder / "run")
        except InputError as error:
            message = str(error)
            assert re.match(r"out of memory at .* in a training step of 4096 sequences at once: by formula", message)
            assert "; torch had allocated " in message
            assert "--training.micro_batch_size 2048 saves " in message
            assert "\n" not in message
            return {"message": message}
    raise AssertionError("it fitted into 1 GiB")


@check
def auto_takes_the_most_that_fits(folder: Path) -> Mapping[str, Any]:
    """A batch that the card cannot hold at once, in parts of the size that was found; more at once is too much."""
    with one_gibibyte():
        found = train(gpt_config(folder, steps=3, batch_size=4096), folder / "run").run
        setup = json.loads((found.checkpoints / "last/state.json").read_text())["setup"]
        size, tried = setup["micro_batch"], setup["micro_batch_tried"]
        assert 1 <= size < 4096, tried
        assert f"{size} fits" in tried, tried
        assert f"{2 * size} does not fit" in tried, tried
        beyond = min(4 * size, 4096)
        try:
            train(gpt_config(folder, steps=3, batch_size=4096, micro_batch_size=beyond), folder / "beyond")
        except InputError as error:
            return {"micro_batch": size, "tried": tried, "beyond": str(error)}
    raise AssertionError(f"{beyond} sequences fitted as well: {tried}")


@check
def shards_of_one_process_train_as_the_whole(folder: Path) -> Mapping[str, Any]:
    """FSDP2 over a single process: its hooks, its precision, Muon's way there and back, a save; with and without."""
    config = gpt_config(folder, precision="bf16", recompute="blocks", ema_decay=0.9)
    whole = losses(config, folder / "whole")
    launch = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29617"}
    launch |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    os.environ |= launch
    try:
        in_shards = losses(config, folder / "shards")
    finally:
        for name in launch:
            del os.environ[name]
    furthest = max(abs(a - b) for a, b in zip(whole, in_shards, strict=True))
    assert furthest < 2e-2, f"the losses are {furthest:.2g} apart: {whole}, {in_shards}"
    shapes = [{name: tensor.shape for name, tensor in tensors(folder / run).items()} for run in ("whole", "shards")]
    assert shapes[0] == shapes[1]
    return {"furthest_apart": furthest}


@check
def a_compiled_encoder_decoder_is_the_eager_one(folder: Path) -> Mapping[str, Any]:
    """The same, by its blocks."""
    return apart(pair_config(folder, compile="blocks"), pair_config(folder, compile="off"), folder)


@check
def a_plan_is_near_what_happens(folder: Path) -> Mapping[str, Any]:
    """Seconds and memory of a run beside those that a plan of it tells; on a CPU of models of seconds only shown."""
    config = gpt_config(folder, precision="bf16" if ON_GPU else "fp32", compile="off", eval_interval=50)
    if not options.tiny:
        config = replace(config, model=replace(config.model, num_layers=8, d_model=512, num_heads=8, d_ff=1536))
    rows = plan_and_train(lambda: GPTTask(config), config, 12 if options.tiny else 200)["check"]
    far = {name: round(row["ratio"], 3) for name, row in rows.items() if not 0.8 <= row["ratio"] <= 1.2}
    assert not (far and ON_GPU), f"planned to measured, further apart than a fifth: {far}; {rows}"
    return {"plan": rows}


def run(name: str, function: Check) -> dict[str, Any]:
    """Do one check, in a folder that goes away."""
    start = time.perf_counter()
    result: dict[str, Any] = {"check": name}
    try:
        with tempfile.TemporaryDirectory() as folder:
            result |= {"outcome": "ok", **function(Path(folder))}
    except LeftOut as reason:
        result |= {"outcome": "left out", "reason": str(reason)}
    except (Exception, SystemExit) as error:
        result |= {"outcome": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    return result | {"seconds": round(time.perf_counter() - start, 2)}


def main() -> int:
    file = Path(options.json)
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    found |= describe_machine(torch.device(options.device)) | {"tiny": options.tiny}
    results = found.setdefault("checks", [])
    if crashed := found.pop("under_way", None):
        results.append({"check": crashed, "outcome": "failed", "reason": "the process ended, or was cut"})
    done = {result["check"] for result in results}
    for name, function in CHECKS.items():
        if name not in done:
            file.write_text(json.dumps(found | {"under_way": name}, indent=1))
            results.append(run(name, function))
            said = results[-1]
            print(f"check {name}: {said['outcome']} {said.get('reason', '')} ({said['seconds']} s)", flush=True)
    file.write_text(json.dumps(found, indent=1) + "\n")
    failed = [result for result in results if result["outcome"] == "failed"]
    print(f"{len(results) - len(failed)} of {len(results)} checks did not fail")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
