"""What a training says at its end of a model of one's own, and the commands that load it."""

import re
import shlex
from pathlib import Path

import torch
from helpers import ROOT, command

from gpt.config import ModelConfig
from gpt.model import GPT
from training.publishing.parts import foreign_part

SCRIPT = """
from launch.train_seq2seq import main
from seq2seq.model import EncoderDecoder
from seq2seq.task import Seq2SeqTask

class Own(EncoderDecoder):
    pass

class Task(Seq2SeqTask):
    model_class = Own

main(Task)
"""
SMALL = (
    "--model.num_layers 1 --model.d_model 16 --model.num_heads 2 "
    "--data.max_length 4 --data.val_samples 10 --training.max_steps 2 --tracking none --output_dir run"
)


def test_the_commands_that_a_training_names_load_a_model_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SCRIPT)
    done = command("mine.py", *SMALL.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = re.findall(r"try it: +\S+ (.* --source abcd --trust_code)\n", done.stdout)
    assert re.search(r"measure it: .* --split test --trust_code\n", done.stdout)
    tried = command(*shlex.split(line), cwd=tmp_path)
    assert (tried.returncode, tried.stderr.count("error")) == (0, 0)
    benchmark = (ROOT / "launch/bench_kv_cache.py", "--checkpoint", "run", "--batch", "1", "--length", "3")
    refused = command(*benchmark, cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "made by a class of one's own, mine:Own: --trust_code (in Python trust_code=True)" in refused.stderr
    assert command(*benchmark, "--repeats", "1", "--trust_code", cwd=tmp_path).returncode == 0


def test_a_class_that_no_command_can_import_is_said(tmp_path: Path) -> None:
    script = SCRIPT.replace("\n", "\n    ").replace("\n", "def made():\n", 1) + "\nmade()\n"
    (tmp_path / "mine.py").write_text(script)
    done = command("mine.py", *SMALL.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mine:made.<locals>.Own was defined within a function, from where none can import it; in P" in done.stdout
    assert "evaluate.py" not in done.stdout


def test_a_class_that_says_that_it_computes_what_its_base_does_has_its_form() -> None:
    class Same(GPT):
        has_native_step = True

    class Other(Same):
        pass

    config = ModelConfig(num_layers=1, d_model=8, num_heads=1)
    plain, same, other = (made_by(config, 5) for made_by in (GPT, Same, Other))
    assert (foreign_part(same, plain), foreign_part(other, plain)) == (None, "its class")
    same.norm = torch.nn.RMSNorm(8)  # type: ignore[assignment]
    assert foreign_part(same, plain) == "norm"
