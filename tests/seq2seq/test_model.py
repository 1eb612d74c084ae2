"""The encoder-decoder: what it may see, what it must not, and its caches."""

import math

import pytest
import torch
from torch import Tensor, nn

from data.pairs.batches import frame_source, padded
from data.tokenizers.vocabulary import PAD, START
from seq2seq.config import ModelConfig, Seq2SeqConfig
from seq2seq.model import EncoderDecoder
from training.config.sections import TrainingConfig
from training.runtime.errors import InputError
from training.seeds import generator

SOURCES = [[3, 4, 5, 6, 7, 8, 3], [5], [8, 8, 4]]
TARGETS = [[START, 4, 4, 7, 3], [START, 6, 5, 8, 8], [START, 3, 7, 3, 5]]


def framed(sources: list[list[int]]) -> Tensor:
    return padded([frame_source(source) for source in sources], PAD)


def close(found: Tensor, expected: Tensor) -> bool:
    """Equal to 1e-5 of the largest logit."""
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


@torch.inference_mode()
def test_padding_changes_nothing(model: EncoderDecoder) -> None:
    together_BTV = model(framed(SOURCES), torch.tensor(TARGETS))
    for source, target, found_TV in zip(SOURCES, TARGETS, together_BTV, strict=True):
        assert close(found_TV, model(framed([source]), torch.tensor([target]))[0])


@torch.inference_mode()
def test_what_the_decoder_looks_at_is_normalised(model: EncoderDecoder) -> None:
    states_BSM = model.encode(framed(SOURCES)).states_BSM
    squares_BS = (states_BSM / model.encoder_norm.weight).square().mean(-1)
    torch.testing.assert_close(squares_BS, torch.ones_like(squares_BS), rtol=1e-4, atol=0)


@torch.inference_mode()
def test_with_the_caches_the_logits_are_those_without(model: EncoderDecoder) -> None:
    target_BT = torch.tensor(TARGETS)
    memory = model.encode(framed(SOURCES))
    whole_BTV = model.logits(model.hidden_states(target_BT, memory))
    remembered, cache = model.cache_cross_attention(memory), model.new_cache(3, 5)
    for pieces in ([1] * 5, [2, 3], [5]):
        cache.reset()
        parts = [
            model.logits(model.hidden_states(part_BT, remembered, cache)) for part_BT in target_BT.split(pieces, 1)
        ]
        assert close(torch.cat(parts, 1), whole_BTV)


@torch.inference_mode()
def test_keys_and_values_of_the_source_are_computed_once(model: EncoderDecoder) -> None:
    remembered, cache = model.cache_cross_attention(model.encode(framed(SOURCES))), model.new_cache(3, 5)

    def forbidden(*_: object) -> None:
        raise AssertionError("computed again")

    for block in model.decoder_blocks:
        for name in ("key", "value"):
            getattr(block.cross_attention, name).register_forward_hook(forbidden)
    assert model.hidden_states(torch.tensor(TARGETS), remembered, cache).isfinite().all()


@torch.inference_mode()
def test_the_decoder_sees_nothing_of_what_follows(model: EncoderDecoder) -> None:
    target_BT = torch.tensor(TARGETS)
    before_BTV = model(framed(SOURCES), target_BT)
    changed_BT = target_BT.clone()
    changed_BT[:, 3:] = 8
    after_BTV = model(framed(SOURCES), changed_BT)
    assert torch.equal(before_BTV[:, :3], after_BTV[:, :3])
    assert not torch.allclose(before_BTV[:, 3:], after_BTV[:, 3:])


@torch.inference_mode()
def test_every_source_token_counts_for_every_target_token(model: EncoderDecoder) -> None:
    source_BS, target_BT = framed(SOURCES[:1]), torch.tensor(TARGETS[:1])
    before_TV = model(source_BS, target_BT)[0]
    for place in range(1, source_BS.size(1) - 1):
        changed_BS = source_BS.clone()
        changed_BS[0, place] = 3 + (source_BS[0, place] - 2) % 6
        assert ((model(changed_BS, target_BT)[0] - before_TV).abs().amax(-1) > 1e-4).all(), place


@torch.inference_mode()
def test_the_order_of_the_source_counts(model: EncoderDecoder) -> None:
    target_BT = torch.tensor(TARGETS[:1])
    assert not torch.allclose(model(framed([[3, 4, 5]]), target_BT), model(framed([[5, 4, 3]]), target_BT), atol=1e-3)


def test_with_both_ends_half_of_the_heads_count_from_the_end() -> None:
    config = ModelConfig(d_model=32, num_heads=4, d_ff=8, max_len=16)
    model = EncoderDecoder(config, 9)
    rotary = model.encode(framed([[3, 4, 5], [3]])).rotary
    assert rotary is not None
    positions = torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [0, 1, 2, 3, 4], [2, 1, 0, 0, 0]])
    expected = model.rotary.cos_TD[positions]  # type: ignore[union-attr]
    assert torch.equal(rotary.cos[0, 0], expected[0])
    assert torch.equal(rotary.cos[0, 1], expected[0])
    assert torch.equal(rotary.cos[0, 2], expected[1])
    assert torch.equal(rotary.cos[0, 3], expected[1])
    assert torch.equal(rotary.cos[1, 3, :3], expected[3][:3]), "counted from its own end, not from that of the padding"


@torch.inference_mode()
def test_tokens_at_the_first_places_are_read_as_ever(model: EncoderDecoder) -> None:
    source_BS, target_BT = framed(SOURCES), torch.tensor(TARGETS)
    first_BP = torch.arange(20).expand(len(SOURCES), -1)
    assert close(model(source_BS, target_BT, first_BP), model(source_BS, target_BT))


@torch.inference_mode()
def test_each_pair_of_a_batch_has_its_own_places(model: EncoderDecoder) -> None:
    source_BS, target_BT = framed(SOURCES), torch.tensor(TARGETS)
    length = max(source_BS.size(1), target_BT.size(1))
    positions_BP = torch.stack(
        [torch.randperm(24, generator=generator(row))[:length].sort().values for row in range(len(SOURCES))]
    )
    together = model(source_BS, target_BT, positions_BP)
    for row, source in enumerate(SOURCES):
        alone = model(framed([source]), target_BT[row : row + 1], positions_BP[row : row + 1])
        assert close(together[row : row + 1], alone)
    assert not torch.allclose(together, model(source_BS, target_BT), atol=1e-3)


def test_a_token_is_found_at_its_place_from_both_ends() -> None:
    model = EncoderDecoder(ModelConfig(d_model=32, num_heads=4, d_ff=8, max_len=16), 9)
    rotary = model.encode(framed([[3, 4, 5], [3]]), torch.tensor([[1, 4, 6, 7, 12, 15]] * 2)).rotary
    assert rotary is not None
    expected = model.rotary.cos_TD[torch.tensor([[1, 4, 6, 7, 12], [12, 7, 6, 4, 1]])]  # type: ignore[union-attr]
    assert torch.equal(rotary.cos[0, :2], expected[[0, 0]])
    assert torch.equal(rotary.cos[0, 2:], expected[[1, 1]])
    assert torch.equal(rotary.cos[1, 3, :3], expected[1][2:])


def test_a_fresh_model_finds_all_tokens_as_likely() -> None:
    model = EncoderDecoder(ModelConfig(d_model=16, num_heads=2, d_ff=24), 11)
    model.init_weights(generator(1))
    logits_BTV = model(framed(SOURCES), torch.tensor(TARGETS))
    losses = nn.functional.cross_entropy(logits_BTV.flatten(0, 1), torch.tensor(TARGETS).flatten(), reduction="none")
    assert torch.allclose(losses, torch.full_like(losses, math.log(11)))
    again = EncoderDecoder(ModelConfig(d_model=16, num_heads=2, d_ff=24), 11)
    again.init_weights(generator(1))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("source_per_target", [1.0, 2.0])
def test_flops_count_each_weight_where_it_works(source_per_target: float) -> None:
    model = EncoderDecoder(ModelConfig(num_layers=1, d_model=16, num_heads=2, d_ff=24), 11)
    encoder = 4 * 16 * 16 + 3 * 16 * 24
    of_source, of_target = encoder + 2 * 16 * 16, encoder + 2 * 16 * 16 + 11 * 16
    assert model.flops_per_token(source_per_target) == 6 * (of_target + source_per_target * of_source)


def test_a_sequence_beyond_the_context_is_an_error(model: EncoderDecoder) -> None:
    with pytest.raises(ValueError, match="expected at most 24 tokens, got 25"):
        model(framed([[3] * 23]), torch.tensor(TARGETS[:1]))
    with pytest.raises(ValueError, match="the cache holds 2 tokens of a sequence, 3 were asked for"):
        model.hidden_states(torch.tensor([[1, 3, 4]]), model.encode(framed([[3]])), model.new_cache(1, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"positions": "learned", "cross_positions": "start"},
            "model.cross_positions must be null or content, without rot",
        ),
        (
            {"num_kv_heads": 1, "cross_positions": "both_ends"},
            "model.cross_positions must be null, content or start, with an odd number",
        ),
        ({"max_len": 2}, "model.max_len must be above 2, for a symbol between start and end, got 2"),
        ({"random_positions": 1.5}, "model.random_positions must be between 0 and 1, got 1.5"),
        ({"num_layers": 0}, "model.num_layers must be at least 1, got 0"),
        ({"d_model": 30}, r"model.d_model must be a multiple of model.num_heads \(4\), got 30"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelConfig(**options)  # type: ignore[arg-type]


def test_strings_must_fit_into_the_model() -> None:
    with pytest.raises(
        InputError, match=r"data.max_length must be at most model.max_len \(20\) minus 2 for start and end, got"
    ):
        Seq2SeqConfig(model=ModelConfig(max_len=20), training=TrainingConfig(max_steps=1))
