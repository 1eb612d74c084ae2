"""Pieces of text: stop strings, ends, several texts at once, and what the model thought of each character."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decoding.writing
from data.tokenizers.byte_tokenizer import ByteTokenizer
from data.tokenizers.characters import CharTokenizer
from decoding.decoder import Decoder
from decoding.sampling import Chosen, Sampling
from decoding.writing import Piece, write
from gpt.config import ModelConfig
from gpt.model import GPT
from gpt.task import sample_text
from training.runtime.errors import InputError

TOKENIZER = CharTokenizer("\n abcdefgh.")
GREEDY = Sampling(temperature=0)
CONTEXT = 12


@pytest.fixture(scope="module")
def model() -> GPT:
    """A model none of whose weights is zero, so that no part of it is idle."""
    config = ModelConfig(num_layers=2, d_model=16, num_heads=2, d_ff=24, max_len=CONTEXT)
    model = GPT(config, len(TOKENIZER)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5, generator=generator).add_(0.01)
    return model


@pytest.fixture(scope="module")
def decoder(model: GPT) -> Decoder:
    return Decoder(model, "eager")


class Script:
    """In the place of `generate`: writes given texts, with log-probabilities -1, -2 and so on, and counts its steps."""

    def __init__(self, *texts: str, tokenizer: CharTokenizer | ByteTokenizer = TOKENIZER) -> None:
        self.tokens = [tokenizer.encode(text).tolist() for text in texts]
        self.texts, self.steps, self.closed, self.tokenizer = texts, 0, False, tokenizer

    def __call__(self, decoder: Decoder, prompts: Sequence[Sequence[int]], **options: int) -> Iterator[Chosen]:
        none = torch.empty(len(self.texts), 0)
        try:
            for step in range(options["max_new_tokens"]):
                self.steps = step + 1
                tokens = [row[step] if step < len(row) else len(self.tokenizer) - 1 for row in self.tokens]
                yield Chosen(torch.tensor(tokens), torch.full((len(tokens),), -step - 1.0), none, none)
        finally:
            self.closed = True


def pieces_of(script: Script, stop: Sequence[str], length: int) -> Iterator[Piece]:
    model = SimpleNamespace(config=SimpleNamespace(max_len=1000))
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(decoding.writing, "generate", script)
        yield from write(
            SimpleNamespace(model=model),  # type: ignore[arg-type]
            script.tokenizer,
            "a",
            max_new_tokens=length,
            num_samples=len(script.texts),
            stop=stop,
        )


@pytest.mark.parametrize(
    ("text", "stop", "written", "steps"),
    [
        ("abcd", ["c"], "ab", 3),
        ("abcd", ["bc"], "a", 3),
        ("aaab", ["aab"], "a", 4),
        ("ababac", ["abac"], "ab", 6),
        ("abcd", ["abcd"], "", 4),
        ("abcd", ["cd", "bcd"], "a", 4),
        ("abcd", ["d", "bc"], "a", 3),
        ("abcd", ["bcde", "c"], "ab", 3),
        ("abcdabch", ["abch", "abce"], "abcd", 8),
        ("a\n\nb", ["\n\n"], "a", 3),
        ("abcd", ["e", "dd"], "abcd", 4),
        ("abab", ["abc"], "abab", 4),
        ("abcd", [], "abcd", 4),
    ],
)
def test_a_text_ends_before_the_first_stop_string_that_is_complete(
    text: str, stop: list[str], written: str, steps: int
) -> None:
    script = Script(text)
    pieces = list(pieces_of(script, stop, len(text)))
    assert "".join(piece.text for piece in pieces) == written
    assert script.steps == steps
    assert script.closed
    assert [piece.end for piece in pieces if piece.end] == ["stop" if any(s in text for s in stop) else "length"]
    assert pieces[-1].end
    # What the model gave a character stays with it, held back or not.
    characters = [piece for piece in pieces if piece.text]
    assert [piece.log_probability for piece in characters] == [-1.0 - place for place in range(len(written))]


def test_characters_come_when_they_are_whole_also_beside_a_stop_string() -> None:
    texts = "aé🙂!!!", "x漢字yz", "字字字字"
    pieces = list(pieces_of(Script(*texts, tokenizer=ByteTokenizer()), ["漢字y", "z"], 8))
    first, second, third = ([piece for piece in pieces if piece.sample == sample] for sample in range(3))
    assert [piece.text for piece in first] == ["a", "", "é", "", "", "", "🙂", "!", ""]
    assert [piece.token for piece in first] == [*texts[0].encode()[:8], None]
    assert [piece.log_probability for piece in first[:8]] == [-1.0 - step for step in range(8)]
    assert "".join(piece.text for piece in second) == "x"
    assert (second[-1].end, second[-1].token) == ("stop", None)
    # Two bytes of the last character, which the length cut, are never shown.
    assert "".join(piece.text for piece in third) == "字字"
    assert [piece.end for piece in third if piece.end] == ["length"]


def test_a_text_ends_with_the_token_for_that_and_what_was_held_back_is_shown() -> None:
    tokenizer = ByteTokenizer()
    script = Script("ab", "abcd", "", tokenizer=tokenizer)
    found: dict[int, list[Piece]] = {0: [], 1: [], 2: []}
    for piece in pieces_of(script, ["bx"], 4):
        found[piece.sample].append(piece)
    assert ["".join(piece.text for piece in pieces) for pieces in found.values()] == ["ab", "abcd", ""]
    assert [pieces[-1].end for pieces in found.values()] == ["end_of_text", "length", "end_of_text"]
    assert [piece.token for piece in found[0]] == [*b"ab", tokenizer.end_of_text]
    assert script.closed


def test_alternatives_that_are_no_whole_characters_are_spelt_out() -> None:
    shape = ModelConfig(num_layers=1, d_model=16, num_heads=2, d_ff=24, max_len=CONTEXT)
    untrained = GPT(shape, len(ByteTokenizer())).eval()
    piece = next(write(Decoder(untrained, "eager"), ByteTokenizer(), "é", max_new_tokens=1, alternatives=257))
    names = {name for name, _ in piece.alternatives}
    assert {"a", r"\xc3", "<|endoftext|>"} <= names
    assert len(names) == 257


SHORT = st.text("ab", min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text("abc", min_size=12, max_size=12), min_size=1, max_size=3), st.lists(SHORT, max_size=3))
def test_no_part_of_a_stop_string_is_ever_shown_and_nothing_else_is_held_back(
    texts: list[str], stop: list[str]
) -> None:
    script, shown = Script(*texts), dict.fromkeys(range(len(texts)), "")
    ends: dict[int, str] = {}

    def expected(text: str) -> tuple[str, str, bool]:
        """What of a text may be shown, what is held back, and whether it is at its end."""
        for length in range(1, len(text) + 1):
            found = [text[:length].find(string) for string in stop if string in text[:length]]
            if found:
                return text[: min(found)], "", True
        held = next(
            n for n in range(len(text) + 1) if any((string + "!").startswith(text[n:]) for string in [*stop, ""])
        )
        return text[:held], text[held:], False

    def check(step: int) -> None:
        for sample, text in enumerate(texts):
            visible, held, stopped = expected(text[:step])
            if stopped:
                assert (shown[sample], ends.get(sample)) == (visible, "stop")
            elif step == 12:
                assert (shown[sample], ends.get(sample)) == (visible + held, "length")
            else:
                assert (shown[sample], ends.get(sample)) == (visible, None)

    step = 0
    for piece in pieces_of(script, stop, 12):
        if script.steps > step:  # All pieces of the steps before are here.
            check(step)
            step = script.steps
        assert piece.sample not in ends, "a piece after the end"
        shown[piece.sample] += piece.text
        if piece.end:
            ends[piece.sample] = piece.end
    check(script.steps)
    assert len(ends) == len(texts)
    assert script.steps == 12 or set(ends.values()) == {"stop"}, "steps that nobody needs"


@torch.no_grad()
def log_probabilities(model: GPT, text: str) -> torch.Tensor:
    """Of each character after the ones before it, without a cache."""
    return model(torch.tensor(TOKENIZER.encode(text)[None]))[0].log_softmax(-1)


@pytest.mark.parametrize("lookup", [0, 3])
def test_each_character_comes_with_what_the_model_gave_it_and_the_likeliest_others(
    model: GPT, decoder: Decoder, lookup: int
) -> None:
    sampling = GREEDY if lookup else Sampling(temperature=2.0, top_k=5, repetition_penalty=1.5)
    options = {"sampling": sampling, "alternatives": 3, "lookup": lookup, "stop": ["zz"], "seed": 5}
    pieces = [piece for piece in write(decoder, TOKENIZER, "abc", max_new_tokens=9, **options) if piece.text]
    text = "".join(piece.text for piece in pieces)
    assert len(text) == 9
    expected_TV = log_probabilities(model, "abc" + text)[2:-1]
    for piece, token, expected_V in zip(pieces, TOKENIZER.encode(text), expected_TV, strict=True):
        assert piece.log_probability == pytest.approx(expected_V[token].item(), abs=1e-5)
        likeliest = expected_V.topk(3)
        assert [name for name, _ in piece.alternatives] == list(TOKENIZER.decode(likeliest.indices.tolist()))
        assert [p for _, p in piece.alternatives] == pytest.approx(likeliest.values.tolist(), abs=1e-5)
    few = next(write(decoder, TOKENIZER, "abc", alternatives=1000))
    assert len(few.alternatives) == len(TOKENIZER)


def samples(pieces: Iterator[Piece]) -> dict[int, tuple[str, str | None]]:
    found: dict[int, tuple[str, str | None]] = {}
    for piece in pieces:
        before, end = found.get(piece.sample, ("", None))
        assert end is None, "a piece after the end"
        found[piece.sample] = before + piece.text, piece.end
    return dict(sorted(found.items()))


@pytest.mark.parametrize("when_full", ["stop", "slide"])
def test_several_texts_of_several_prompts_are_those_of_each_alone(decoder: Decoder, when_full: str) -> None:
    options = {"max_new_tokens": 10, "when_full": when_full, "stop": ["a", "de"]}
    prompts = ["a", "bcdefgh", "h" * CONTEXT, "ab"]
    together = samples(write(decoder, TOKENIZER, prompts, num_samples=3, seed=20, **options))
    assert list(together) == list(range(12))
    for number, prompt in enumerate(prompts):
        for n in range(3):
            alone = samples(write(decoder, TOKENIZER, prompt, seed=20 + n, **options))
            assert alone == {0: together[3 * number + n]}
        of_one_prompt = samples(write(decoder, TOKENIZER, prompt, num_samples=3, seed=20, **options))
        assert list(of_one_prompt.values()) == [together[3 * number + n] for n in range(3)]
    assert len(set(together.values())) > 6
    assert {end for _, end in together.values()} == {"stop", "length"} | ({"context"} if when_full == "stop" else set())


def test_each_prompt_is_read_once_for_all_of_its_texts(decoder: Decoder) -> None:
    shapes: list[tuple[int, ...]] = []
    hook = decoder.model.blocks[0].register_forward_hook(lambda _, inputs, out: shapes.append(inputs[0].shape[:2]))
    assert len(samples(write(decoder, TOKENIZER, ["ab", "cde"], num_samples=3, max_new_tokens=2))) == 6
    hook.remove()
    assert shapes == [(2, 3), (6, 1)]


@pytest.mark.parametrize(
    ("prompt", "length", "when_full", "written", "end"),
    [
        ("abc", 5, "stop", 5, "length"),
        ("abc", 10, "stop", 10, "length"),  # Exactly what the context has room for.
        ("abc", 11, "stop", 10, "context"),
        ("a" * CONTEXT, 7, "stop", 1, "context"),
        ("a" * CONTEXT, 1, "stop", 1, "length"),
        ("abc", 40, "slide", 40, "length"),
        ("a" * 3 * CONTEXT, 20, "slide", 20, "length"),
    ],
)
@pytest.mark.parametrize("lookup", [0, 4])
def test_a_text_ends_by_its_length_or_by_the_context(
    decoder: Decoder, prompt: str, length: int, when_full: str, written: int, end: str, lookup: int
) -> None:
    options = {"max_new_tokens": length, "when_full": when_full, "sampling": GREEDY}
    ((text, reason),) = samples(write(decoder, TOKENIZER, prompt, lookup=lookup, **options)).values()
    assert (len(text), reason) == (written, end)
    assert {0: (text, reason)} == samples(write(decoder, TOKENIZER, prompt, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"stop": ["a", ""]}, "a stop string is empty: give at least one character"),
        ({"alternatives": -1}, "alternatives must be at least 0, got -1"),
        ({"prompt": "ab\nxa"}, r"unknown character 'x' \(U\+0078\) at line 2, column 1 of the prompt"),
        ({"prompt": ["a", "é"]}, r"unknown character 'é' \(U\+00E9\) at line 1, column 1 of the prompt"),
        ({"prompt": ["a", ""]}, "the prompt is empty"),
        ({"prompt": []}, "prompt"),
        ({"prompt": "a" * 13, "when_full": "stop"}, "the prompt has 13 tokens, and the model's context 12"),
        ({"seed": 2**63 - 1, "num_samples": 2}, r"seed must be at least 0 and below 2\^63"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"lookup": 2}, "lookup writes the greedy text: it wants temperature 0 and no repetition_penalty"),
        (
            {"lookup": 2, "sampling": Sampling(temperature=0, repetition_penalty=1.1)},
            "lookup writes the greedy text: it wants temperature 0 and no repetition_penalty",
        ),
        ({"lookup": 2, "sampling": GREEDY, "num_samples": 2}, "lookup writes one text at a time"),
        ({"lookup": 2, "sampling": GREEDY, "prompt": ["a", "b"]}, "lookup writes one text at a time"),
        ({"lookup": -2, "sampling": GREEDY}, "lookup must be at least 1 and at most 31, got -2"),
    ],
)
def test_what_is_out_of_range_is_an_error(decoder: Decoder, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        next(write(decoder, TOKENIZER, **({"prompt": "a"} | options)))


@pytest.mark.parametrize("training", [True, False])
def test_a_sample_leaves_the_model_in_the_mode_in_which_it_was(model: GPT, training: bool) -> None:
    model.train(training)
    try:
        steps = sample_text(model, TOKENIZER, "ab", max_new_tokens=30, seed=4)
        assert model.training == training, "nothing has been asked for yet"
        first = next(steps)
        assert not model.training
        steps.close()
        assert model.training == training
        text = "".join(sample_text(model, TOKENIZER, "ab", max_new_tokens=30, seed=4))
        assert model.training == training
        with pytest.raises(InputError, match="unknown character"):
            next(sample_text(model, TOKENIZER, "x"))
        assert model.training == training
    finally:
        model.eval()
    assert len(text) == 30, "past the end of the context"
    assert text.startswith(first)
    sampling = Sampling(temperature=0.8)
    pieces = write(Decoder(model), TOKENIZER, "ab", max_new_tokens=30, seed=4, sampling=sampling, when_full="slide")
    assert text == "".join(piece.text for piece in pieces)
    greedy = "".join(sample_text(model, TOKENIZER, "ab", max_new_tokens=30, sampling=GREEDY))
    assert greedy == "".join(sample_text(model, TOKENIZER, "ab", max_new_tokens=30, sampling=GREEDY, seed=9))


def test_closing_gives_back_the_cache(model: GPT) -> None:
    decoder = Decoder(model, "eager")
    out = []
    take = decoder.take_cache
    decoder.take_cache = lambda *sizes: out.append(take(*sizes)) or out[-1]  # type: ignore[method-assign]
    decoder.give_back = out.remove  # type: ignore[method-assign]
    for lookup, stop in ((0, []), (3, []), (0, list(TOKENIZER.characters)), (3, list(TOKENIZER.characters))):
        pieces = write(decoder, TOKENIZER, "ab", lookup=lookup, sampling=GREEDY, stop=stop)
        next(pieces)
        assert len(out) == 1
        pieces.close()
        assert out == []
