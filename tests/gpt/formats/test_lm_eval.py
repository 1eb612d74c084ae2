"""lm-eval reads an exported GPT, and measures what we measure."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import with_training

from gpt.config import GPTConfig
from gpt.export import write_transformers
from gpt.task import LoadedGPT, load_gpt, train_gpt

pytestmark = pytest.mark.nightly
lm_eval = pytest.importorskip("lm_eval")

CHOICES = """
task: products
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
TEXT = """
task: lines
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{prompt}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""
ROWS: list[dict[str, Any]] = [
    {"prompt": f"{n} times {n % 7} is", "choices": [f" {n * (n % 7) + k}." for k in (0, 1, 5)], "answer": 0}
    for n in range(100, 112)
]


@torch.no_grad()
def log_likelihood(loaded: LoadedGPT, before: list[int], text: str) -> float:
    """Of a text after some tokens, in nats."""
    ids = torch.tensor([*before, *loaded.tokenizer.encode_prompt(text)])
    scores = loaded.model(ids[None, :-1])[0].log_softmax(-1).gather(1, ids[1:, None])
    return float(scores[len(before) - 1 :].sum())


def measured(folder: Path, tasks: list[str], **model: Any) -> dict[str, Any]:
    """What lm-eval says of an export in tasks on local data."""
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"dtype": "float32", **model},
        tasks=tasks,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
    )
    assert found is not None
    return found


@pytest.mark.parametrize("tokenizer", ["bpe:300", "bytes", "characters"])
def test_lm_eval_measures_an_export_as_we_do(tokenizer: str, config: GPTConfig, tmp_path: Path) -> None:
    config = with_training(config, max_steps=60, eval_interval=0, checkpoint_interval=0)
    config = replace(config, data=replace(config.data, tokenizer=tokenizer))
    train_gpt(replace(config, model=replace(config.model, max_len=48)), output_dir=tmp_path / "run")
    loaded, model, tasks = load_gpt(tmp_path / "run"), tmp_path / "model", tmp_path / "tasks"
    for folder in (model, tasks):
        folder.mkdir()
    write_transformers(loaded, model, torch.float32)
    (tasks / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    for name, task in (("products", CHOICES), ("lines", TEXT)):
        (tasks / f"{name}.yaml").write_text(task.format(file=tasks / "rows.jsonl"))
    end = loaded.tokenizer.end_of_text
    if end is None:  # lm-eval wants a token that stands before a whole text; characters have none.
        found = measured(tasks, ["products"], pretrained=str(model), prefix_token_id=0)
    else:
        found = measured(tasks, ["products", "lines"], pretrained=str(model))
    likeliest = 0
    assert len(found["samples"]["products"]) == len(ROWS)
    for sample in found["samples"]["products"]:
        before = loaded.tokenizer.encode_prompt(sample["doc"]["prompt"])
        ours = [log_likelihood(loaded, before, choice) for choice in sample["doc"]["choices"]]
        assert [float(answer[0][0]) for answer in sample["resps"]] == pytest.approx(ours, rel=1e-4)
        likeliest += ours.index(max(ours)) == sample["doc"]["answer"]
    assert found["results"]["products"]["acc,none"] == pytest.approx(likeliest / len(ROWS))
    if end is not None:
        bits = -sum(log_likelihood(loaded, [end], row["prompt"]) for row in ROWS) / math.log(2)
        num_bytes = sum(len(row["prompt"].encode()) for row in ROWS)
        assert found["results"]["lines"]["bits_per_byte,none"] == pytest.approx(bits / num_bytes, rel=1e-4)
