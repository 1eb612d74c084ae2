"""Exported GPTs in llama.cpp: the same tokens, logits and greedy text."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import BEYOND, FORMS, GPT2, LLAMA, QWEN3, loaded, written
from helpers import with_training

from data.tokenizers.subwords import END_OF_TEXT, PROBE, SubwordTokenizer, learn_subwords
from gpt.config import GPTConfig, ModelConfig
from gpt.task import LoadedGPT, load_gpt, train_gpt

pytestmark = pytest.mark.nightly
pytest.importorskip("gguf")
llama_cpp = pytest.importorskip("llama_cpp")

FP32 = 0
"""What llama.cpp calls the type, which it takes for its cache only where it is asked to."""
AS_PUBLISHED = {"max_len": 64, "embedding_scale": 1.0, "tie_embeddings": True}
PUBLISHED = {
    "SmolLM2 135M": (
        replace(replace(LLAMA, d_model=576, num_heads=9, num_kv_heads=3, d_ff=1536, rope_theta=1e5), **AS_PUBLISHED),
        49_152,
    ),
    "Qwen3 0.6B": (
        replace(
            replace(QWEN3, d_model=1024, num_heads=16, num_kv_heads=8, head_dim=128, d_ff=3072, rope_theta=1e6),
            **AS_PUBLISHED,
        ),
        151_936,
    ),
    "GPT-2 124M": (replace(replace(GPT2, d_model=768, num_heads=12, d_ff=3072), **AS_PUBLISHED), 50_257),
}
"""Their shapes, but for the number of layers and the context; and their vocabularies' sizes."""
VERSE = """A quick brown fox jumps over 13 lazy dogs.
"Why not?" said Zebra, who kept 742 of them;
but nobody (that we know) has asked the dogs.

"""
FORMS_OF_TEXT = {"llama": replace(LLAMA, num_kv_heads=2), "qwen3": QWEN3, "gpt2": GPT2}


@contextmanager
def llama(path: Path) -> Iterator[Any]:
    """The model of a file, in llama.cpp."""
    model = llama_cpp.Llama(
        str(path), n_ctx=256, logits_all=True, verbose=False, n_threads=1, type_k=FP32, type_v=FP32, flash_attn=False
    )
    try:
        yield model
    finally:
        model.close()


@torch.no_grad()
def assert_same_logits(source: LoadedGPT, path: Path) -> None:
    ids = torch.randint(256, (40,), generator=torch.Generator().manual_seed(1))
    expected = source.model(ids[None])[0]
    with llama(path) as theirs:
        theirs.eval(ids.tolist())
        found = torch.from_numpy(np.array(theirs.scores[: len(ids)]))
    # llama.cpp looks GELU up in a table of fp16.
    bound = 1e-3 if source.model.config.activation == "gelu_tanh" else 1e-5
    assert (found - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.parametrize("name", [*FORMS, *BEYOND])
def test_logits_are_the_same(name: str, tmp_path: Path) -> None:
    source = loaded((FORMS | BEYOND)[name])
    assert_same_logits(source, written(source, tmp_path, "F32"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_logits_of_published_shapes_are_the_same(name: str, tmp_path: Path) -> None:
    config, size = PUBLISHED[name]
    source = loaded(config, padding=size - 257)
    path = written(source, tmp_path, "F32")
    assert_same_logits(source, path)
    path.unlink()


def trained(config: GPTConfig, model: ModelConfig, tokenizer: str, folder: Path) -> LoadedGPT:
    """A model that knows a few lines by heart, so that it is sure of what it writes."""
    Path(config.data.source).write_text(VERSE * 60)
    config = with_training(config, max_steps=300, eval_interval=0, checkpoint_interval=0, log_interval=50)
    optimizer = replace(config.optimizer, name="adamw", learning_rate=5e-3)
    shape, data = replace(model, max_len=256), replace(config.data, tokenizer=tokenizer)
    train_gpt(replace(config, model=shape, data=data, optimizer=optimizer), output_dir=folder)
    return load_gpt(folder)


@torch.no_grad()
def greedy_text(loaded: LoadedGPT, prompt: str, count: int) -> str:
    """Without a cache."""
    tokens = loaded.tokenizer.encode_prompt(prompt)
    start = len(tokens)
    for _ in range(count):
        tokens.append(int(loaded.model(torch.tensor([tokens]))[0, -1].argmax()))
    return loaded.tokenizer.decode(tokens[start:])


@pytest.mark.parametrize(
    ("form", "tokenizer"), [("llama", "characters"), ("llama", "bpe:300"), ("qwen3", "bytes"), ("gpt2", "bpe:300")]
)
def test_greedy_text_is_the_same(form: str, tokenizer: str, config: GPTConfig, tmp_path: Path) -> None:
    source = trained(config, FORMS_OF_TEXT[form], tokenizer, tmp_path / "run")
    prompt, kinds = "A quick", ("F32", "F16", "Q8_0")
    expected = greedy_text(source, prompt, 200)
    for kind in kinds:
        with llama(written(source, tmp_path, kind)) as theirs:
            assert theirs.tokenize(VERSE.encode(), add_bos=False) == source.tokenizer.encode_prompt(VERSE)
            done = theirs.create_completion(prompt, max_tokens=200, temperature=0.0, repeat_penalty=1.0)
            assert done["choices"][0]["text"] == expected, kind


def published(steps: list[dict[str, Any]], **model: Any) -> SubwordTokenizer:
    """A vocabulary of ours that takes text apart as one that others publish."""
    saved = json.loads(learn_subwords([PROBE * 3, "it's 12345 times\n\n  DON'T\r\n x " * 9], 400, 10**6).to_json())
    saved["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    saved["model"] |= model
    return SubwordTokenizer(json.dumps(saved))


def byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": use_regex}


def words(digits: str) -> list[dict[str, Any]]:
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, byte_level(use_regex=False)]


SPLITS = {
    "gpt-2": published([byte_level(use_regex=True)]),
    "smollm": published([{"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)]),
    "llama-bpe": published(words("{1,3}"), ignore_merges=True),
    "qwen2": published(words("")),
}


@pytest.mark.parametrize("name", SPLITS)
def test_texts_are_taken_apart_the_same_way(name: str, tmp_path: Path) -> None:
    tokenizer = SPLITS[name]
    with llama(written(loaded(LLAMA, tokenizer), tmp_path, "F16")) as theirs:
        for text in (PROBE, f"  DON'T\r\n\r\n 12345 it's\t\t{END_OF_TEXT}\n \n", "x  ", "\u0660\u0661 \u00bd don't"):
            ids = theirs.tokenize(text.encode(), add_bos=False)
            assert ids == tokenizer.encode_prompt(text), repr(text)
            assert theirs.detokenize(ids).decode() == text


def test_bytes_are_read_one_by_one_names_of_tokens_too(tmp_path: Path) -> None:
    source = loaded(LLAMA)
    with llama(written(source, tmp_path, "F16")) as theirs:
        ids = theirs.tokenize(PROBE.encode(), add_bos=False)
        assert ids == source.tokenizer.encode_prompt(PROBE)
        assert theirs.detokenize(ids).decode() == PROBE
        assert theirs.token_eos() == source.tokenizer.end_of_text
