"""What the page does, for programs: its API."""

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, TypeAlias
from uuid import uuid4

import gradio as gr
from gradio.events import api

from decoding.choices import ROWS, WHEN_FULL
from demo.session import Session
from demo.tabs.common import MODEL
from training.runtime.errors import InputError

Answers: TypeAlias = Generator[dict[str, Any], None, None]


def add_api(session: Session) -> None:
    """The same work for programs."""

    def generate(
        run: str,
        prompt: str,
        max_new_tokens: int = 300,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        when_full: str = WHEN_FULL,
        stop: str = "",
        compare: bool = False,
        num_samples: int = 1,
        precision: str = "fp32",
    ) -> Answers:
        """Continue a prompt with a GPT. when_full is one of stop, slide; a seed is at most 2^53."""
        looks = session.write(
            uuid4().hex, run, prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
            min_p=min_p, repetition_penalty=repetition_penalty, seed=seed, when_full=when_full, stop=stop,
            compare=compare, num_samples=num_samples, precision=precision,
        )  # fmt: skip
        yield from _answers(looks, lambda writing: {"text": writing.text, "texts": writing.texts} | writing.figures())

    def benchmark(run: str, new_tokens: int = ROWS[-1], precision: str = "fp32") -> Answers:
        """Seconds until 100, 200, 300 and 500 new tokens, without the key-value cache and with it."""
        yield from _answers(session.benchmark(uuid4().hex, run, new_tokens, precision), lambda result: result.figures())

    def transduce(run: str, source: str, beams: int = 1) -> Answers:
        """The target of a source, by a trained encoder-decoder: greedy, or with several beams."""
        yield from _answers(
            session.transduce(uuid4().hex, run, source, beams),
            lambda found: {
                "target": found.target,
                "probabilities": found.probabilities,
                "beams": [{"target": text, "log_probability": p} for text, p in found.beams],
                "end": found.why or found.phase,
            },
        )

    for function in (generate, benchmark, transduce):
        api(function, api_name=function.__name__, concurrency_id=MODEL)


def _answers(looks: Generator[Any, None, None], answer: Callable[[Any], dict[str, Any]]) -> Answers:
    try:
        with closing(looks):
            for result in looks:
                yield answer(result)
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from error
