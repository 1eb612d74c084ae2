"""What the page does, without a page: requests are checked, run as jobs, and their results filled in token by token."""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast, get_args

import torch

from data.pairs.batches import check_source
from data.tokenizers.vocabulary import END
from decoding.benchmark import WARM_UP_TOKENS
from decoding.choices import ROWS, WHEN_FULL, Mode, Precision, WhenFull
from decoding.decoder import Decoder
from decoding.generation import generate, new_token_limit
from decoding.machine import PROMPT_TOKENS, describe
from decoding.sampling import Sampling
from decoding.targets import decode_steps, search
from decoding.writing import Piece, write
from demo import limits as check
from demo.catalogue import Catalogue
from demo.jobs import Job, Jobs, Result
from demo.limits import MAX_SEED, MAX_TOP_K, PENALTY, SHARE, TEMPERATURE, Limits
from demo.results import Benchmark, Transduction, Writing
from gpt.baselines import random_prompts, variants, write_without_cache
from gpt.model import GPT
from gpt.task import LoadedGPT
from seq2seq.attention_map import cross_attention
from training.runtime.errors import InputError, require_finite

log = logging.getLogger(__name__)

ALTERNATIVES = 4
BLOCK = 10
"""Tokens that a variant of the benchmark writes before the next one's turn."""


class Session:
    """All requests of a server.

    Args:
        runs: The folder of the runs.
        device: Where models go.
        limits: What a request may ask for.
        mode: How a step is computed; a compiled one serves one request at a time.
        trust_code: Import the classes of somebody's own that made models.
    """

    def __init__(
        self,
        runs: Path,
        device: torch.device | str = "cpu",
        limits: Limits | None = None,
        mode: Mode = "auto",
        *,
        trust_code: bool = False,
    ) -> None:
        self.catalogue = Catalogue(runs, device, trust_code=trust_code)
        self.limits = limits or Limits()
        self.jobs = Jobs()
        self._mode = mode
        self._compiled: Decoder | None = None
        self._ahead: threading.Thread | None = None
        # A request that was ended may still compile, or be at its last token, when the next one begins.
        self._turn: AbstractContextManager[Any] = threading.Lock() if mode == "compiled" else nullcontext()

    def compile_ahead(self) -> None:
        """In mode compiled, compile the run that a page opens with, in a thread; requests are eager meanwhile."""
        if self._mode == "compiled":
            self._ahead = threading.Thread(target=self._compile_best, name="compiling", daemon=True)
            self._ahead.start()

    def _compile_best(self) -> None:
        try:
            run = self.catalogue.best("gpt")
            if run is not None:
                decoder = Decoder(self.catalogue.gpt(run).model, "compiled")
                _compile(decoder)
                self._compiled = decoder
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            log.warning("the model cannot be compiled, so that texts are written eagerly: %s", reason)
            self._mode = "eager"

    def write(self, owner: str, run: Any, prompt: Any, **options: Any) -> Generator[Writing, None, None]:
        """Continue a prompt; closing the iterator ends the work at the next token.

        Args:
            owner: Who asks: another request of the same one ends this one.
            run: The name of a run.
            prompt: The text to continue.
            options: max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, when_full, stop,
                num_samples (texts), precision, compare (read the same tokens without the cache as well) and
                alternatives (report them).

        Raises:
            InputError: Something is out of range or unknown, or the checkpoint is damaged or gone.
        """
        asked = _asked(prompt, options, self.limits)

        def work(job: Job[Writing]) -> None:
            loaded = self.catalogue.gpt(run, asked.precision)
            decoder, is_new = self._decoder(loaded.model)
            tokens = loaded.tokenizer.encode_prompt(asked.prompt)
            context = loaded.config.model.max_len
            when_full = asked.options["when_full"]
            limit = new_token_limit(context, tokens, asked.options["max_new_tokens"], when_full)
            slots = context if decoder.mode == "compiled" else min(context, len(tokens) + limit - 1)
            job.check()
            job.result = Writing(
                prompt=asked.prompt,
                prompt_tokens=tokens,
                tokenizer=loaded.tokenizer,
                mode=decoder.mode,
                context=context,
                when_full=when_full,
                limit=limit,
                cache_bytes=loaded.model.new_cache(len(asked.seeds), slots).bytes,
                precision=asked.precision,
                seeds=asked.seeds,
                phase="compiling" if is_new else "writing",
            )
            if is_new:
                _compile(decoder)
                job.check()
                job.result.phase = "writing"
            _write(job, job.result, decoder, loaded, asked)

        yield from self._run(owner, work)

    def benchmark(
        self, owner: str, run: Any, new_tokens: Any = ROWS[-1], precision: Any = "fp32"
    ) -> Generator[Benchmark, None, None]:
        """Measure the reference's table with the model of a run; see `write`."""
        dtype = _precision(precision)
        length = check.integer("new_tokens", new_tokens, ROWS[0], self.limits.new_tokens)

        def work(job: Job[Benchmark]) -> None:
            model = self.catalogue.gpt(run, dtype).model
            eager, (fastest, _) = Decoder(model, "eager"), self._decoder(model)
            decoders = [eager, fastest] if fastest.mode != "eager" else [eager]
            ways = variants([(dtype, decoder) for decoder in decoders], [1], ["eager"])
            for way in ways:
                way.passes.append([])
            about = describe(model, str(run)) | {"precision": dtype, "prompt_tokens": PROMPT_TOKENS}
            job.check()
            result = job.result = Benchmark(about=about, variants=ways)
            prompts = random_prompts(model.vocab_size, 1)
            for way in ways:
                for _ in way.write(prompts, WARM_UP_TOKENS):
                    job.check()
            result.phase = "measuring"
            with ExitStack() as stack:
                writing = [stack.enter_context(closing(way.write(prompts, length))) for way in ways]
                while result.tokens < length:
                    for way, seconds in zip(ways, writing, strict=True):
                        for passed in islice(seconds, BLOCK):
                            way.passes[0].append(passed)
                            job.check()

        yield from self._run(owner, work)

    def transduce(self, owner: str, run: Any, source: Any, beams: Any = 1) -> Generator[Transduction, None, None]:
        """Decode the target of a source, greedily or with several beams; see `write`."""
        asked = check.text("the source", source, self.limits.prompt_characters)
        width = check.integer("beams", beams, 1, self.limits.beams)

        def work(job: Job[Transduction]) -> None:
            loaded = self.catalogue.seq2seq(run)
            tokens = loaded.vocabulary.encode(asked, "the source")
            check_source(tokens, loaded.config.model.max_len, "the source")
            job.check()
            result = job.result = Transduction(loaded=loaded, source=asked, source_tokens=list(tokens))
            if width > 1:

                def on_step(best: tuple[int, ...]) -> None:
                    job.check()
                    result.tokens = list(best)

                found = search(loaded.model, tokens, width=width, on_step=on_step)
                result.beams = [
                    (loaded.vocabulary.decode([t for t in beam.tokens if t != END]), beam.log_probability)
                    for beam in found
                ]
                result.tokens = [token for token in found[0].tokens if token != END]
            else:
                for chosen in decode_steps(loaded.model, [tokens]):
                    token = int(chosen.tokens_B[0])
                    require_finite([float(chosen.log_probabilities_B[0])])
                    result.probabilities.append(float(chosen.log_probabilities_B[0].exp()))
                    if token == END:
                        break
                    result.tokens = [*result.tokens, token]
                    job.check()
            seen = result.tokens[: loaded.config.model.max_len - 1]
            result.attention = cross_attention(loaded.model, tokens, seen)

        yield from self._run(owner, work)

    def _run(self, owner: str, work: Callable[[Job[Result]], None]) -> Generator[Result, None, None]:
        def in_turn(job: Job[Result]) -> None:
            with self._turn:
                job.check()
                work(job)

        yield from self.jobs.run(owner, Job(in_turn, self.limits.seconds))

    def _decoder(self, model: GPT) -> tuple[Decoder, bool]:
        """A model's decoder, and whether it has to be compiled first; a compiled one is kept for the next request."""
        if self._ahead is not None and self._ahead.is_alive():
            return Decoder(model, "eager"), False
        if self._mode != "compiled":
            return Decoder(model, self._mode), False
        is_new = self._compiled is None or self._compiled.model is not model
        if self._compiled is None or is_new:
            self._compiled = Decoder(model, "compiled")
        return self._compiled, is_new


def _compile(decoder: Decoder) -> None:
    """Write a token and read it, by which the step is made."""
    list(generate(decoder, [[0]], max_new_tokens=2))


_ENDS = {
    "length": "as long as asked",
    "stop": "at the stop string",
    "context": "the context is full",
    "end_of_text": "the model ended the text",
}


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A request to write, checked; `options` are those of `decoding.writing.write`."""

    prompt: str
    seeds: range
    precision: Precision
    compare: bool
    options: dict[str, Any]


def _asked(prompt: Any, options: dict[str, Any], limits: Limits) -> _Asked:
    seed = check.integer("seed", options.get("seed", 0), 0, MAX_SEED)
    texts = check.integer("num_samples", options.get("num_samples", 1), 1, limits.texts)
    compare = check.switch("compare", options.get("compare", False))
    if compare and texts > 1:
        raise InputError("compare reads one text a second time: write one, or leave out the comparison")
    stop = check.text("stop", options.get("stop"), limits.stop_characters)
    return _Asked(
        prompt=check.text("the prompt", prompt, limits.prompt_characters),
        seeds=range(seed, seed + texts),
        precision=_precision(options.get("precision", "fp32")),
        compare=compare,
        options={
            "max_new_tokens": check.integer("max_new_tokens", options.get("max_new_tokens", 300), 1, limits.new_tokens),
            "sampling": _sampling(options),
            "seed": seed,
            "num_samples": texts,
            "stop": [stop] if stop else (),
            "when_full": check.choice("when_full", options.get("when_full", WHEN_FULL), get_args(WhenFull)),
            "alternatives": ALTERNATIVES * check.switch("alternatives", options.get("alternatives", False)),
        },
    )


def _precision(value: Any) -> Precision:
    return cast(Precision, check.choice("precision", value, get_args(Precision)))


def _sampling(options: dict[str, Any]) -> Sampling:
    def optional(name: str) -> float | None:
        value = options.get(name)
        return None if value is None else check.number(name, value, *SHARE)

    top_k = options.get("top_k")
    try:
        return Sampling(
            temperature=check.number("temperature", options.get("temperature", 0.8), *TEMPERATURE),
            top_k=None if top_k is None else check.integer("top_k", top_k, 0, MAX_TOP_K) or None,
            top_p=optional("top_p"),
            min_p=optional("min_p"),
            repetition_penalty=check.number("repetition_penalty", options.get("repetition_penalty", 1.0), *PENALTY),
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def _write(job: Job[Writing], writing: Writing, decoder: Decoder, loaded: LoadedGPT, asked: _Asked) -> None:
    """Write the text, taking the time of each token, and then read it eagerly if a comparison was asked for."""
    for piece in _pieces(job, decoder, loaded, asked, writing.milliseconds):
        writing.pieces.append(piece)
    writing.why = ", ".join(dict.fromkeys(_ENDS[piece.end] for piece in writing.pieces if piece.end))
    if not asked.compare:
        return
    writing.phase = "comparing"
    if decoder.mode == "eager":
        writing.eager = writing.milliseconds
    else:
        alike = {"max_new_tokens": len(writing.milliseconds), "stop": (), "alternatives": 0}
        again = replace(asked, options=asked.options | alike)
        for _ in _pieces(job, Decoder(loaded.model, "eager"), loaded, again, writing.eager):
            pass
    new = [piece.token for piece in writing.pieces if piece.token is not None]
    before = 0.0
    for passed in write_without_cache(loaded.model, loaded.model, [writing.prompt_tokens], len(new), known=new):
        writing.uncached.append(1000 * (passed - before))
        before = passed
        job.check()


def _pieces(
    job: Job[Writing], decoder: Decoder, loaded: LoadedGPT, asked: _Asked, milliseconds: list[float]
) -> Iterator[Piece]:
    """The pieces of the text, with the time of each token added to `milliseconds`."""
    start = time.perf_counter()

    def on_token() -> None:
        nonlocal start
        job.check()  # Here, since a token that may belong to a stop string is no piece yet.
        now = time.perf_counter()
        milliseconds.append(1000 * (now - start))
        start = now

    return write(decoder, loaded.tokenizer, asked.prompt, on_token=on_token, **asked.options)
