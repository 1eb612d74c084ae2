"""Generation: what is written, one text or many, within the context and past it, and what is left behind."""

import gc
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import islice

import psutil
import pytest
import torch

from decoding.decoder import Decoder, Mode
from decoding.generation import WhenFull, generate, generate_with_lookup, new_token_limit, search
from decoding.native import NativeError, library
from decoding.sampling import GREEDY, Sampling, filtered_probabilities, penalise, seen_tokens
from gpt.config import ModelConfig
from gpt.model import GPT
from layers import KVCache
from training.runtime.errors import InputError

try:
    library()
    NATIVE = pytest.param("native")
except NativeError as error:
    NATIVE = pytest.param("native", marks=pytest.mark.skip(reason=str(error)))

MODES = pytest.mark.parametrize("mode", ["eager", NATIVE])
FULL = pytest.mark.parametrize("when_full", ["stop", "slide"])
VOCABULARY = 13
WILD = Sampling(temperature=1.5, top_p=0.95, repetition_penalty=1.3)


def random_model(max_len: int = 12, **changes: object) -> GPT:
    """A model none of whose weights is zero, so that no part of it is idle."""
    sizes = {"num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 24, "positions": "learned"}
    model = GPT(ModelConfig(**(sizes | {"max_len": max_len} | changes)), VOCABULARY).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5, generator=generator).add_(0.01)
    return model


class CountingDecoder(Decoder):
    """Knows which caches are out, and how often it was asked to read."""

    def __init__(self, model: GPT, mode: Mode = "eager") -> None:
        super().__init__(model, mode)
        self.out: list[KVCache] = []
        self.readings, self.fails_at = 0, 0

    def take_cache(self, batch_size: int = 1, max_len: int | None = None) -> KVCache:
        self.out.append(super().take_cache(batch_size, max_len))
        return self.out[-1]

    def give_back(self, cache: KVCache) -> None:
        self.out.remove(cache)
        super().give_back(cache)

    def decode_step(self, tokens_BT: torch.Tensor, cache: KVCache) -> torch.Tensor:
        self.readings += 1
        if self.readings == self.fails_at:
            raise MemoryError
        return super().decode_step(tokens_BT, cache)


def texts(decoder: Decoder, prompts: Sequence[Sequence[int]], count: int, **options: object) -> list[list[int]]:
    """What `generate` writes, of each text as much as is its own."""
    steps = list(generate(decoder, prompts, max_new_tokens=count, **options))
    when_full = options.get("when_full", "stop")
    prompts = list(prompts) * (len(steps[0].tokens_B) // len(prompts))
    limits = [new_token_limit(decoder.model.config.max_len, p, count, when_full) for p in prompts]
    assert len(steps) == max(limits)
    columns = torch.stack([chosen.tokens_B for chosen in steps], 1).tolist()
    return [column[:limit] for column, limit in zip(columns, limits, strict=True)]


@torch.no_grad()
def without_cache(model: GPT, prompt: Sequence[int], count: int, when_full: WhenFull, penalty: float) -> list[int]:
    """The greedy text, from the whole context at every step."""
    context, tokens = model.config.max_len, list(prompt)
    start = max(0, len(tokens) - context)
    while len(tokens) < len(prompt) + count:
        if len(tokens) - start > context:
            if when_full == "stop":
                break
            start = len(tokens) - max(context // 2, 1)
        logits_1V = model(torch.tensor([tokens[start:]]))[:, -1]
        tokens.append(int(penalise(logits_1V, seen_tokens([tokens], VOCABULARY), penalty).argmax()))
    return tokens[len(prompt) :]


@cache
def greedy_texts(
    context: int, positions: str, when_full: WhenFull, penalty: float
) -> tuple[GPT, list[list[int]], list[list[int]]]:
    """A model, prompts, and what follows them, from the whole context at every step."""
    model = random_model(context, positions=positions)
    prompts = [
        [2],
        [5, 1, 6, 3, 4],
        [1, 2, 3],
        list(range(context)),
        [7, 7, 8],
        [token % VOCABULARY for token in range(1, context + 4)],
    ]
    if when_full == "stop":
        prompts = [prompt for prompt in prompts if len(prompt) <= context]
    return model, prompts, [without_cache(model, prompt, 30, when_full, penalty) for prompt in prompts]


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
@pytest.mark.parametrize("context", [12, 7, 1])
@FULL
@MODES
def test_greedy_texts_equal_those_of_the_whole_context_read_at_every_step(
    mode: Mode, when_full: WhenFull, context: int, penalty: float, positions: str
) -> None:
    model, prompts, expected = greedy_texts(context, positions, when_full, penalty)
    sampling = Sampling(temperature=0, repetition_penalty=penalty)
    options = {"sampling": sampling, "when_full": when_full}
    decoder = Decoder(model, mode)
    assert texts(decoder, prompts, 30, seeds=range(len(prompts)), **options) == expected
    assert [texts(decoder, [prompt], 30, **options)[0] for prompt in prompts] == expected
    assert len({tuple(text) for text in expected}) > 1 or context == 1, "the prompts decide"


@FULL
@MODES
def test_a_text_is_its_seeds_and_its_prompts_whatever_stands_beside_it(mode: Mode, when_full: WhenFull) -> None:
    decoder = Decoder(random_model(), mode)
    options = {"sampling": WILD, "when_full": when_full}
    prompts, seeds = [[2], [5, 1, 6, 3, 4], list(range(12)), [2]], [7, 8, 9, 7]
    batch = texts(decoder, prompts, 40, seeds=seeds, **options)
    for prompt, seed, text in zip(prompts, seeds, batch, strict=True):
        assert texts(decoder, [prompt], 40, seeds=[seed], **options) == [text]
    one_prompt = texts(decoder, [[3, 4]], 40, seeds=[4, 5, 4, 2**63 - 1], **options)
    for seed, text in zip([4, 5, 4, 2**63 - 1], one_prompt, strict=True):
        assert texts(decoder, [[3, 4]], 40, seeds=[seed], **options) == [text]
    assert len({tuple(text) for text in one_prompt}) == 3


def test_draws_follow_the_models_probabilities() -> None:
    model, sampling = random_model(), Sampling(temperature=1.3, top_k=6)
    (chosen,) = generate(Decoder(model, "eager"), [[1, 2]], max_new_tokens=1, sampling=sampling, seeds=range(3000))
    with torch.no_grad():
        probabilities_V = filtered_probabilities(model(torch.tensor([[1, 2]]))[:, -1], sampling)[0]
    shares_V = chosen.tokens_B.bincount(minlength=VOCABULARY) / 3000
    torch.testing.assert_close(shares_V.double(), probabilities_V / probabilities_V.sum(), atol=0.035, rtol=0)
    assert not shares_V[probabilities_V == 0].any()


@pytest.mark.parametrize("draft", [1, 8, 31])
@FULL
@MODES
def test_lookup_writes_the_greedy_text_in_fewer_readings(mode: Mode, when_full: WhenFull, draft: int) -> None:
    model = random_model(40, positions="rotary")
    prompt, count = [3, 1, 4, 1, 5, 9, 2, 6], 150 if when_full == "slide" else 33
    decoder = CountingDecoder(model, mode)
    options = {"max_new_tokens": count, "when_full": when_full}
    steps = generate_with_lookup(decoder, prompt, draft=draft, alternatives=2, **options)
    looked_up = list(steps)
    assert decoder.readings < (0.8 if draft == 1 else 0.6) * count, "nothing of what was proposed was right"
    plain = list(generate(decoder, [prompt], sampling=GREEDY, alternatives=2, **options))
    assert [int(chosen.tokens_B) for chosen in looked_up] == [int(chosen.tokens_B) for chosen in plain]
    assert len(plain) == count
    for one, other in zip(looked_up, plain, strict=True):
        assert torch.equal(one.alternatives_BA, other.alternatives_BA)
        for name in ("log_probabilities_B", "alternative_log_probabilities_BA"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-4, rtol=0)


@pytest.mark.parametrize("right", [0, 2, 100])
@pytest.mark.parametrize(("when_full", "count"), [("stop", 8), ("stop", 9), ("slide", 60)])
def test_of_what_lookup_proposes_only_what_is_right_is_kept(
    when_full: WhenFull, count: int, right: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model()
    expected = without_cache(model, [1, 2, 3, 4], count, when_full, 1.0)
    # It knows what follows, to beyond the end.
    truth = [1, 2, 3, 4, *without_cache(model, [1, 2, 3, 4], count + 9, "slide", 1.0)]

    def partly_right(text: Sequence[int], max_tokens: int) -> list[int]:
        following = truth[len(text) :][:max_tokens]
        return [*following[:right], *((token + 1) % VOCABULARY for token in following[right:])]

    monkeypatch.setattr("decoding.generation._look_up", partly_right)
    decoder = CountingDecoder(model)
    steps = generate_with_lookup(decoder, [1, 2, 3, 4], max_new_tokens=count, draft=5, when_full=when_full)
    assert [int(chosen.tokens_B) for chosen in islice(steps, count + 1)] == expected
    assert decoder.readings < (count / 2 if right else count)


@MODES
def test_the_search_finds_what_the_model_finds_likely(mode: Mode) -> None:
    model = random_model()
    decoder, prompt = CountingDecoder(model, mode), [4, 2]
    (only,) = search(decoder, prompt, width=1, max_new_tokens=10)
    assert [list(only.tokens)] == texts(decoder, [prompt], 10, sampling=GREEDY)
    beams = search(decoder, prompt, width=5, max_new_tokens=30, length_penalty=0.5)
    assert len({beam.tokens for beam in beams}) == 5
    assert [beam.score for beam in beams] == sorted((beam.score for beam in beams), reverse=True)
    for beam in beams:
        assert len(beam.tokens) == 11, "as many as fit"
        with torch.no_grad():
            log_probabilities_TV = model(torch.tensor([[*prompt, *beam.tokens[:-1]]]))[0, 1:].log_softmax(-1)
        total = log_probabilities_TV.gather(1, torch.tensor(beam.tokens)[:, None]).sum().item()
        assert beam.log_probability == pytest.approx(total, abs=1e-4)
        assert beam.score == pytest.approx(total / 11**0.5, abs=1e-4)
    # With a beam for every token, two tokens are searched exhaustively.
    best = search(decoder, prompt, width=VOCABULARY, max_new_tokens=2)[0]
    with torch.no_grad():
        first_V = model(torch.tensor([prompt]))[0, -1].log_softmax(-1)
        second_VV = model(torch.tensor([[*prompt, token] for token in range(VOCABULARY)]))[:, -1].log_softmax(-1)
    assert best.tokens == divmod(int((first_V[:, None] + second_VV).argmax()), VOCABULARY)
    assert decoder.out == []


def test_as_many_tokens_follow_as_the_context_has_room_for() -> None:
    assert [new_token_limit(12, [0] * length, 100, "stop") for length in (1, 11, 12)] == [12, 2, 1]
    assert new_token_limit(12, [0] * 5, 3, "stop") == 3
    assert new_token_limit(12, [0] * 50, 100, "slide") == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"seeds": [0, 2**63]}, r"seed must be at least 0 and below 2\^63, got 9223372036854775808"),
        ({"seeds": [-1]}, "seed must be at least 0"),
        ({"when_full": "wrap"}, "when_full must be stop or slide, got wrap"),
        ({"prompts": [[]]}, "the prompt is empty: give at least one character to continue"),
        ({"prompts": [[1], []], "seeds": [0, 1]}, "the prompt is empty"),
        (
            {"prompts": [[1] * 12, [1] * 1013], "seeds": [0, 1], "when_full": "stop"},
            "prompt has 1,013 tokens, and the model's context 12:",
        ),
        ({"prompts": [[1], [2]]}, "seeds"),
        ({"prompts": [[1], [2]], "seeds": [0, 1, 2]}, "seeds"),
        ({"prompts": []}, "prompt"),
    ],
)
def test_options_out_of_range_are_errors_before_anything_is_read(options: dict[str, object], message: str) -> None:
    decoder = CountingDecoder(random_model())
    defaults = {"prompts": [[1]], "max_new_tokens": 1, "sampling": GREEDY}
    with pytest.raises(InputError, match=message):
        next(generate(decoder, **(defaults | options)))
    assert decoder.out == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "beams must be at least 1 and at most 1024, got 0"),
        ({"width": 1025}, "beams must be at least 1 and at most 1024, got 1025"),
        ({"length_penalty": -0.1}, "length_penalty must be at least 0 and at most 10, got -0.1"),
        ({"length_penalty": float("nan")}, "length_penalty must be at least 0 and at most 10, got nan"),
        ({"prompt": [1] * 13}, "the prompt has 13 tokens, and the model's context 12"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
    ],
)
def test_searches_out_of_range_are_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        search(Decoder(random_model(), "eager"), **({"prompt": [1], "width": 2, "max_new_tokens": 3} | options))


def test_a_lookup_of_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match="lookup must be at least 1 and at most 31, got -2"):
        next(generate_with_lookup(Decoder(random_model(), "eager"), [1], max_new_tokens=2, draft=-2))


@pytest.mark.parametrize("end", ["closed", "forgotten", "read to its end", "failed"])
def test_the_cache_is_given_back_however_a_text_ends(end: str) -> None:
    decoder = CountingDecoder(random_model())
    decoder.fails_at = 3 if end == "failed" else 0
    for start in (
        lambda: generate(decoder, [[1], [2, 3]], max_new_tokens=9, seeds=[0, 1], sampling=GREEDY),
        lambda: generate_with_lookup(decoder, [1, 2], max_new_tokens=9),
    ):
        decoder.readings = 0
        steps = start()
        next(steps)
        assert len(decoder.out) == 1
        if end == "closed":
            steps.close()
            assert next(steps, None) is None
        elif end == "forgotten":
            del steps
        elif end == "failed":
            with pytest.raises(MemoryError):
                list(steps)
        else:
            list(steps)
        assert decoder.out == []
    decoder.readings, decoder.fails_at = 0, 3
    with pytest.raises(MemoryError):
        search(decoder, [1, 2], width=2, max_new_tokens=9)
    assert decoder.out == []


@pytest.mark.parametrize("lookup", [False, True], ids=["plain", "lookup"])
def test_five_thousand_tokens_take_no_more_memory_than_five_hundred(lookup: bool) -> None:
    decoder = Decoder(random_model(16, num_layers=1, d_model=8, num_heads=1, d_ff=8))
    options = {"max_new_tokens": 5_000, "when_full": "slide"}
    steps = generate_with_lookup(decoder, [1], **options) if lookup else generate(decoder, [[1]], **options)
    process, measured = psutil.Process(), []
    for step, _ in enumerate(steps, start=1):
        if step in (500, 5_000):
            gc.collect()
            kinds = Counter(type(thing) for thing in gc.get_objects())
            measured.append((process.memory_info().rss / 2**20, kinds[torch.Tensor]))
    assert measured[1][1] <= measured[0][1] + 32, "tensors"
    assert measured[1][0] <= measured[0][0] + 3, "MiB"
