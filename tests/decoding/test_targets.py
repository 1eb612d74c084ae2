"""Greedy, sampled and searched targets, with and without the caches, alone and in batches."""

from itertools import product
from math import exp
from typing import Any

import pytest
import torch
from seq2seq_models import OTHER_SHAPES, random_model

import decoding.targets
from data.pairs.batches import frame_source, padded
from data.tokenizers.vocabulary import END, PAD, START
from decoding.native import NativeError, library
from decoding.sampling import Sampling
from decoding.targets import Decoded, TargetMode, decode, decode_steps, search
from seq2seq.model import EncoderDecoder
from training.runtime.errors import InputError

try:
    library()
    NATIVE = pytest.param("native")
except NativeError as error:
    NATIVE = pytest.param("native", marks=pytest.mark.skip(reason=str(error)))
SOURCES = [[3, 4, 5, 6, 7, 8, 3], [5], [8, 8, 4], [4, 3, 4, 3, 4, 3, 4, 3, 4]]
DRAW = Sampling(temperature=1.5)


def tokens_of(found: list[Decoded]) -> list[tuple[int, ...]]:
    return [decoded.tokens for decoded in found]


@pytest.mark.parametrize("mode", ["eager", NATIVE])
@pytest.mark.parametrize("sampling", [Sampling(temperature=0), DRAW, Sampling(temperature=1.0, top_k=3)])
def test_with_the_caches_targets_are_those_without(model: EncoderDecoder, sampling: Sampling, mode: TargetMode) -> None:
    with_caches = decode(model, SOURCES, sampling=sampling, mode=mode)
    without = decode(model, SOURCES, sampling=sampling, use_cache=False)
    assert tokens_of(with_caches) == tokens_of(without)
    for a, b in zip(with_caches, without, strict=True):
        assert a.log_probability == pytest.approx(b.log_probability, rel=1e-4)


@pytest.mark.parametrize("mode", ["eager", NATIVE])
def test_a_batch_gives_what_each_source_gives_alone(model: EncoderDecoder, mode: TargetMode) -> None:
    together = decode(model, SOURCES, sampling=DRAW, seeds=[4, 5, 6, 7], mode=mode)
    for source, seed, found in zip(SOURCES, (4, 5, 6, 7), together, strict=True):
        (alone,) = decode(model, [source], sampling=DRAW, seeds=[seed], mode=mode)
        assert alone.tokens == found.tokens
        assert alone.log_probability == pytest.approx(found.log_probability, rel=1e-4)


@pytest.mark.parametrize("mode", ["eager", NATIVE])
@torch.inference_mode()
def test_each_step_gives_the_logits_of_the_whole_model(model: EncoderDecoder, mode: TargetMode) -> None:
    assert_steps_give_the_logits_of(model, mode)


@pytest.mark.parametrize("mode", ["eager", NATIVE])
@pytest.mark.parametrize("shape", OTHER_SHAPES, ids=["GPT-2", "scaled"])
@torch.inference_mode()
def test_shapes_of_other_models_are_read_in_every_mode(shape: dict[str, Any], mode: TargetMode) -> None:
    model = random_model(**shape)
    assert_steps_give_the_logits_of(model, mode)
    (alone,), together = decode(model, SOURCES[:1], mode=mode), decode(model, SOURCES, mode="eager")
    assert alone.tokens == together[0].tokens


def assert_steps_give_the_logits_of(model: EncoderDecoder, mode: TargetMode) -> None:
    source_BS = padded([frame_source(source) for source in SOURCES], PAD)
    target_BT = torch.randint(3, 9, (len(SOURCES), 12), generator=torch.Generator().manual_seed(2))
    expected_BTV = model(source_BS, target_BT)
    read = decoding.targets._stepper(model, model.encode(source_BS), model.new_cache(len(SOURCES), 12), mode)
    read_BTV = torch.stack([read(token_B1) for token_B1 in target_BT.split(1, 1)], 1)
    torch.testing.assert_close(read_BTV, expected_BTV, rtol=0, atol=1e-5 * float(expected_BTV.abs().max()))


@pytest.mark.parametrize(("d_model", "batch", "natively"), [(256, 33, True), (258, 33, False), (258, 32, True)])
def test_wide_models_read_many_targets_as_they_stand(
    d_model: int, batch: int, natively: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = random_model(d_model=d_model, num_heads=1), []

    def native_step(model: EncoderDecoder) -> None:
        asked.append(model)
        raise NativeError("there is none")

    monkeypatch.setattr(decoding.targets, "native_step", native_step)
    assert len(decode(model, [[3]] * batch, max_new_tokens=1)) == batch, "it falls back"
    assert bool(asked) == natively


def test_a_native_step_that_cannot_be_had_is_an_error_where_it_is_asked_for() -> None:
    model = random_model().double()
    reason = "there is no native step here: it computes on the CPU, from weights in fp32, bf16 or int8"
    for work in (lambda: decode(model, [[3]], mode="native"), lambda: search(model, [3], width=1, mode="native")):
        with pytest.raises(InputError, match=reason):
            work()
    assert decode(model, [[3]]) == decode(model, [[3]], mode="eager")


def test_the_same_seed_draws_the_same_target_and_another_one_another(model: EncoderDecoder) -> None:
    first, same, other = decode(model, [SOURCES[0]] * 3, sampling=DRAW, seeds=[1, 1, 2])
    assert first.tokens == same.tokens != other.tokens


@torch.inference_mode()
def test_log_probabilities_are_those_of_the_whole_target(model: EncoderDecoder) -> None:
    (found,) = decode(model, SOURCES[:1], sampling=DRAW, seeds=[3])
    assert found.ended
    target = [*found.tokens, END]
    logits_TV = model(torch.tensor([frame_source(SOURCES[0])]), torch.tensor([[START, *found.tokens]]))[0]
    logits_TV[:, [PAD, START]] = -torch.inf
    expected = logits_TV.log_softmax(-1)[range(len(target)), target].sum()
    assert found.log_probability == pytest.approx(float(expected), rel=1e-4)


def test_targets_end_at_their_end_or_at_the_limit() -> None:
    model = random_model(max_len=12)
    for limit in (1, 3, 12, None):
        for found in decode(model, SOURCES, sampling=DRAW, max_new_tokens=limit):
            assert len(found.tokens) <= (limit or 12) - found.ended
            assert found.ended or len(found.tokens) == (limit or 12)
            assert not {PAD, START, END} & set(found.tokens)


@torch.inference_mode()
def test_no_target_goes_on_with_padding_or_a_second_start_however_likely() -> None:
    model = random_model()
    assert model.head is not None
    symbol_M = model.head.weight[8].clone()
    for likely, sign in ((PAD, 1), (PAD, -1), (START, 1), (START, -1)):
        model.head.weight[[PAD, START]] = 0.0
        model.head.weight[likely] = 20 * sign * symbol_M  # Of the signs, one makes it the likeliest by far.
        for found in decode(model, SOURCES):
            assert not {PAD, START} & set(found.tokens)
        for beam in search(model, SOURCES[0], width=4):
            assert not {PAD, START} & set(beam.tokens)


def test_alternatives_are_reported_with_each_step() -> None:
    model = random_model()
    steps = decode_steps(model, SOURCES, alternatives=3)
    chosen = next(steps)
    steps.close()
    assert chosen.alternatives_BA.shape == (4, 3)
    assert torch.equal(chosen.alternatives_BA[:, 0], chosen.tokens_B)


def exhaustive(
    model: EncoderDecoder, source: list[int], length_penalty: float, limit: int
) -> list[tuple[float, tuple[int, ...]]]:
    """All targets of up to `limit` tokens that end, and those of `limit` tokens that do not, by falling score."""
    symbols = range(3, model.vocab_size)
    found = []
    for length in range(limit + 1):
        for tokens in product(symbols, repeat=length):
            target = [*tokens, END] if length < limit else list(tokens)
            inputs = torch.tensor([[START, *target[:-1]]])
            logits_TV = model(torch.tensor([frame_source(source)]), inputs)[0]
            logits_TV[:, [PAD, START]] = -torch.inf
            total = float(logits_TV.log_softmax(-1).double()[range(len(target)), target].sum())
            found.append((total / len(target) ** length_penalty, tuple(target)))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@torch.inference_mode()
def test_a_wide_beam_finds_what_an_exhaustive_search_finds(length_penalty: float) -> None:
    model = random_model(vocab_size=6)
    for source in ([3, 4, 5], [5]):
        best = exhaustive(model, source, length_penalty, limit=4)
        beams = search(model, source, width=100, max_new_tokens=4, length_penalty=length_penalty)
        for (score, tokens), beam in zip(best[:5], beams[:5], strict=True):
            assert beam.tokens == tokens
            assert beam.score == pytest.approx(score, rel=1e-4)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("mode", ["eager", NATIVE])
def test_one_beam_is_greedy(model: EncoderDecoder, mode: TargetMode, length_penalty: float) -> None:
    for source in [*SOURCES, *([first, 11 - first, 3] for first in range(3, 9))]:
        (greedy,) = decode(model, [source], mode=mode)
        (beam,) = search(model, source, width=1, length_penalty=length_penalty, mode=mode)
        assert tuple(token for token in beam.tokens if token != END) == greedy.tokens
        assert beam.log_probability == pytest.approx(greedy.log_probability, rel=1e-4)


def test_beams_are_different_targets_the_likeliest_first(model: EncoderDecoder) -> None:
    seen: list[tuple[int, ...]] = []
    beams = search(model, SOURCES[0], width=6, length_penalty=0.0, on_step=seen.append)
    assert [len(tokens) for tokens in seen] == list(range(len(seen)))
    assert len({beam.tokens for beam in beams}) == 6
    assert [beam.score for beam in beams] == sorted((beam.score for beam in beams), reverse=True)
    assert sum(exp(beam.log_probability) for beam in beams) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": []}, "there is no source: give at least one"),
        ({"sources": [[3], []]}, "source 2 is empty: give at least one symbol"),
        ({"sources": [[3] * 23]}, "the source has 23 tokens, at most 22 fit into the model's context of 24"),
        ({"sources": [[3]], "max_new_tokens": 0}, "max_new_tokens must be at least 1 and at most 24 .*, got 0"),
        ({"sources": [[3]], "max_new_tokens": 25}, r"at most 24 \(model.max_len\), got 25"),
        ({"sources": [[3]], "mode": "fast"}, "mode must be one of auto, eager, native, got fast"),
    ],
)
def test_bad_input_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode(random_model(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "beams must be at least 1 and at most 1024, got 0"),
        ({"width": 2, "length_penalty": -1.0}, "length_penalty must be at least 0 and at most 10, got -1.0"),
    ],
)
def test_bad_options_of_a_search_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        search(random_model(), [3], **options)  # type: ignore[arg-type]
