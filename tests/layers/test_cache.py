"""Attention over a cache against attention at once, whatever the history of the cache."""

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from layers import CachePositions, KVCache, MultiHeadAttention, RotaryPositions

D_MODEL, NUM_HEADS, HEAD_SIZE, NUM_LAYERS, MAX_LEN = 16, 4, 4, 2, 12
HUGE = 1e30
"""What no token may see: it makes everything wrong. (NaN is wrong even where attention gives it no weight.)"""


class Stack(nn.Module):
    """Attention layers on top of each other, with rotary positions and grouped heads."""

    def __init__(self, num_kv_heads: int = 2) -> None:
        super().__init__()
        torch.manual_seed(5)
        options = {"d_model": D_MODEL, "num_heads": NUM_HEADS, "num_kv_heads": num_kv_heads}
        self.layers = nn.ModuleList(MultiHeadAttention(**options, qk_norm=True) for _ in range(NUM_LAYERS))
        self.rotary = RotaryPositions(MAX_LEN, HEAD_SIZE)
        self.num_kv_heads = num_kv_heads

    def new_cache(self, batch_size: int = 1, max_len: int = MAX_LEN, dtype: torch.dtype = torch.float32) -> KVCache:
        return KVCache(
            num_layers=NUM_LAYERS,
            batch_size=batch_size,
            num_kv_heads=self.num_kv_heads,
            max_len=max_len,
            head_size=HEAD_SIZE,
            dtype=dtype,
        )

    @torch.no_grad()
    def at_once(self, x_BTM: Tensor) -> Tensor:
        rotary = self.rotary(x_BTM.size(1))
        for layer in self.layers:
            x_BTM = x_BTM + layer(x_BTM, causal=True, rotary=rotary)
        return x_BTM

    @torch.no_grad()
    def forward(self, x_BTM: Tensor, cache: KVCache, place: CachePositions) -> Tensor:
        rotary = self.rotary(x_BTM.size(1), place.positions_BT)
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            x_BTM = x_BTM + layer(x_BTM, rotary=rotary, cache=layer_cache, cache_positions=place)
        return x_BTM

    def read(self, x_BTM: Tensor, cache: KVCache, counts: Sequence[int] | None = None) -> Tensor:
        return self(x_BTM, cache, cache.extend(x_BTM.size(1), counts))


def assert_near(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * max(expected.abs().max().item(), 1e-30))


def poison(cache: KVCache) -> None:
    """Fill all that holds no token with what no token may see."""
    for layer in cache.layers:
        for rows_ND, stored_BHSD in zip(layer.rows, (layer.keys_BHSD, layer.values_BHSD), strict=True):
            rows_ND[-1] = torch.nan
            for row, length in enumerate(cache.lengths):
                stored_BHSD[row, :, length:] = HUGE


def padded(parts: Sequence[Tensor], size: int) -> Tensor:
    """Chunks of several sequences, with padding that would be seen if it were looked at."""
    return torch.stack([torch.cat((part, torch.full((size - len(part), D_MODEL), 1e3))) for part in parts])


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("chunks", [[1] * MAX_LEN, [3, 1, 4, 4], [MAX_LEN], [1, MAX_LEN - 1]])
def test_attention_in_chunks_over_a_cache_equals_attention_at_once(chunks: list[int], num_kv_heads: int) -> None:
    stack, x = Stack(num_kv_heads), torch.randn(2, MAX_LEN, D_MODEL)
    cache = stack.new_cache(2)
    poison(cache)
    parts = [stack.read(part, cache) for part in x.split(chunks, dim=1)]
    assert_near(torch.cat(parts, 1), stack.at_once(x))
    assert cache.lengths == cache.lengths_B.tolist() == [MAX_LEN] * 2


RAGGED = [(5, [5, 2, 3]), (1, None), (1, None), (1, [1, 0, 1]), (4, [1, 4, 2]), (2, [0, 2, 0]), (1, None)]


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize(
    "chunks",
    [RAGGED, [(4, [0, 4, 1]), *RAGGED[:3]], [(1, [1, 0, 0]), (6, [0, 6, 2]), (1, None)], [(20, [12, 1, 7])]],
    ids=["ragged", "an empty one first", "one behind another", "more padding than the cache is long"],
)
def test_sequences_of_different_lengths_read_as_each_alone_and_never_see_padding(
    chunks: list[tuple[int, list[int] | None]], num_kv_heads: int
) -> None:
    stack, cache = Stack(num_kv_heads), Stack(num_kv_heads).new_cache(3)
    texts = [torch.empty(0, D_MODEL) for _ in range(3)]
    for size, counts in chunks:
        poison(cache)
        fresh = [torch.randn(count, D_MODEL) for count in counts or [size] * 3]
        texts = [torch.cat(pair) for pair in zip(texts, fresh, strict=True)]
        y_BTM = stack.read(padded(fresh, size), cache, counts)
        assert cache.lengths == cache.lengths_B.tolist() == [len(text) for text in texts]
        for row, (text, new) in enumerate(zip(texts, fresh, strict=True)):
            if len(new):
                assert_near(y_BTM[row, : len(new)], stack.at_once(text[None])[0, -len(new) :])


@pytest.mark.parametrize("seed", range(6))
def test_any_history_of_the_cache_reads_as_each_sequence_alone(seed: int) -> None:
    draw, stack, cache = random.Random(seed), Stack(), Stack().new_cache(3)
    texts = [torch.empty(0, D_MODEL) for _ in range(3)]
    torch.manual_seed(seed)
    for _ in range(60):
        act = draw.choice(["read"] * 3 + ["step"] * 3 + ["compiled step", "rewind", "reset", "reorder", "fill"])
        room = [MAX_LEN - len(text) for text in texts]
        if act in ("read", "step", "compiled step"):
            size = draw.randint(1, 6) if act == "read" else 1
            if act == "read" or not min(room):
                counts = [draw.randint(0, min(size, left)) for left in room]
            else:
                counts = [size] * 3
            fresh = [torch.randn(count, D_MODEL) for count in counts]
            texts = [torch.cat(pair) for pair in zip(texts, fresh, strict=True)]
            poison(cache)
            if act == "compiled step" and min(counts) == 1:
                y_BTM = stack(padded(fresh, 1), cache, cache.next_positions(1, MAX_LEN))
                cache.advance(1)
            else:
                y_BTM = stack.read(padded(fresh, size), cache, None if min(counts) == size else counts)
            for row, (text, new) in enumerate(zip(texts, fresh, strict=True)):
                if len(new):
                    assert_near(y_BTM[row, : len(new)], stack.at_once(text[None])[0, -len(new) :])
        elif act == "rewind":
            back = draw.randint(0, min(map(len, texts)))
            cache.rewind(back)
            texts = [text[: len(text) - back] for text in texts]
        elif act == "reset":
            rows = draw.sample(range(3), draw.randint(1, 2))
            cache.reset(rows)
            texts = [text[:0] if row in rows else text for row, text in enumerate(texts)]
        elif act == "reorder":
            rows = [draw.randrange(3) for _ in range(3)]
            cache.reorder(rows)
            texts = [texts[row] for row in rows]
        else:
            other = stack.new_cache(3)
            other.fill_from(cache)
            cache = other
        assert cache.lengths == cache.lengths_B.tolist() == [len(text) for text in texts]


def test_padding_beside_a_full_sequence_overwrites_nothing() -> None:
    stack = Stack()
    cache = stack.new_cache(3)
    stack.read(torch.randn(3, MAX_LEN, D_MODEL), cache)
    cache.reset([1])
    before = [(layer.keys_BHSD.clone(), layer.values_BHSD.clone()) for layer in cache.layers]
    stack.read(torch.randn(3, 5, D_MODEL), cache, [0, 2, 0])
    for layer, pair in zip(cache.layers, before, strict=True):
        for now_BHSD, then_BHSD in zip((layer.keys_BHSD, layer.values_BHSD), pair, strict=True):
            changed_BS = (now_BHSD != then_BHSD).any(-1).any(1)
            assert changed_BS.nonzero().tolist() == [[1, 0], [1, 1]]


OVERFLOWS: dict[str, Callable[[KVCache], object]] = {
    "extend": lambda cache: cache.extend(2),
    "extend with padding": lambda cache: cache.extend(5, [2, 0]),
    "advance": lambda cache: cache.advance(2),
}


@pytest.mark.parametrize("way", OVERFLOWS)
def test_one_token_too_many_is_an_error_that_changes_nothing(way: str) -> None:
    stack, x = Stack(), torch.randn(2, MAX_LEN - 1, D_MODEL)
    cache = stack.new_cache(2)
    stack.read(x, cache, [MAX_LEN - 1, 3])
    before = [rows_ND.clone() for layer in cache.layers for rows_ND in layer.rows]
    with pytest.raises(ValueError, match=f"^the cache holds {MAX_LEN} tokens of a sequence, 13 were asked for$"):
        OVERFLOWS[way](cache)
    assert cache.lengths == cache.lengths_B.tolist() == [MAX_LEN - 1, 3]
    after = [rows_ND for layer in cache.layers for rows_ND in layer.rows]
    assert all(torch.equal(*both) for both in zip(before, after, strict=True))
    # The last one still fits, at its place.
    last = torch.randn(2, 1, D_MODEL)
    y_BTM = stack.read(last, cache)
    assert_near(y_BTM[0, 0], stack.at_once(torch.cat((x, last), 1))[0, -1])


def test_taking_tokens_back_leaves_no_trace() -> None:
    stack, x = Stack(), torch.randn(2, 9, D_MODEL)
    cache, other = stack.new_cache(2), stack.new_cache(2)
    stack.read(x[:, :4], cache, [4, 2])
    stack.read(100 * torch.randn(2, 5, D_MODEL), cache, [5, 5])
    cache.rewind(5)
    stack.read(x[:, :4], other, [4, 2])
    for part in x[:, 4:].split([3, 1, 1], dim=1):
        assert_near(stack.read(part, cache), stack.read(part, other))
    for tokens in (-1, 8):  # The shorter sequence holds 7.
        with pytest.raises(ValueError, match=f"^cannot take back {tokens} tokens of a sequence that holds 7$"):
            cache.rewind(tokens)
    assert cache.lengths == cache.lengths_B.tolist() == [9, 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_can_begin_with_the_tokens_of_another(dtype: torch.dtype) -> None:
    stack, x, tails = Stack(), torch.randn(1, 5, D_MODEL), torch.randn(4, 3, D_MODEL)
    single, cache = stack.new_cache(1, 5), stack.new_cache(4, 8, dtype)
    stack.read(torch.randn(4, 7, D_MODEL), cache)
    poison(cache)
    stack.read(x, single)
    cache.fill_from(single)
    assert cache.lengths == cache.lengths_B.tolist() == [5] * 4
    expected = stack.at_once(torch.cat((x.expand(4, -1, -1), tails), 1))[:, 5:]
    actual = stack.read(tails, cache)
    if dtype == torch.float32:
        assert_near(actual, expected)
    else:
        assert (actual - expected).norm() < 0.02 * expected.norm()
    assert single.lengths == [5]
    for batch_size, max_len in [(1, 12), (2, 12), (6, 12), (4, 7)]:
        other = stack.new_cache(batch_size, max_len)
        wrong = f"^4 sequences of up to 8 tokens do not fit into a cache of {batch_size} times {max_len}$"
        with pytest.raises(ValueError, match=wrong):
            other.fill_from(cache)
        assert other.lengths == [0] * batch_size


def test_each_sequence_can_be_the_beginning_of_several() -> None:
    stack, x = Stack(), torch.randn(2, 5, D_MODEL)
    short, cache, tails = stack.new_cache(2, 5), stack.new_cache(6), torch.randn(6, 3, D_MODEL)
    poison(cache)
    stack.read(x, short, [5, 3])
    cache.fill_from(short)
    assert cache.lengths == cache.lengths_B.tolist() == [5, 5, 5, 3, 3, 3]
    actual = stack.read(tails, cache)
    for row, length in enumerate(cache.lengths):
        beginning = x[row // 3, : length - 3]
        alone = stack.at_once(torch.cat((beginning, tails[row])).unsqueeze(0))
        assert_near(actual[row], alone[0, length - 3 :])


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.float64, 8)])
def test_memory_is_what_the_formula_says_and_stays_where_it_is_over_10_000_tokens(
    dtype: torch.dtype, size: int
) -> None:
    cache = KVCache(num_layers=3, batch_size=2, num_kv_heads=5, max_len=64, head_size=4, dtype=dtype)
    assert cache.bytes == 2 * 3 * (2 * 5 * 64 + 1) * 4 * size
    assert cache.dtype == dtype

    def tensors() -> list[Tensor]:
        stored = [tensor for layer in cache.layers for tensor in (*layer.rows, layer.keys_BHSD, layer.values_BHSD)]
        return [*stored, cache.lengths_B]

    addresses = [tensor.data_ptr() for tensor in tensors()]
    assert {tensor.untyped_storage().nbytes() for tensor in tensors()[:-1]} == {cache.bytes // 6}
    draw, read = random.Random(0), 0
    while read < 10_000:
        new = draw.choice([1, 1, 1, 20])
        if max(cache.lengths) + new > 64:
            draw.choice([cache.reset, lambda: cache.rewind(min(cache.lengths)), lambda: cache.reorder([1, 1])])()
            cache.reset([draw.randrange(2)])
            continue
        place = cache.extend(new, draw.choice([None, [new, 1]]))
        for layer in cache.layers:
            new_BHTD = torch.ones(2, 5, new, 4, dtype=dtype)
            layer.store(new_BHTD, new_BHTD, place)
        read += new
    assert [tensor.data_ptr() for tensor in tensors()] == addresses
    assert cache.bytes == 2 * 3 * (2 * 5 * 64 + 1) * 4 * size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_cache_may_have_other_numbers_than_the_queries(dtype: torch.dtype) -> None:
    stack, x = Stack(), torch.randn(2, 8, D_MODEL)
    cache, exact = stack.new_cache(2, dtype=dtype), stack.new_cache(2)
    parts = [stack.read(part, cache) for part in x.split([5, 1, 2], dim=1)]
    expected = stack.read(x, exact)
    assert {part.dtype for part in parts} == {torch.float32}
    assert (torch.cat(parts, 1) - expected).norm() < (0.02 if dtype == torch.bfloat16 else 1e-6) * expected.norm()
    # The first layer saw the same inputs: what it stored differs by one rounding.
    for slot in range(2):
        assert cache.layers[0].read(8)[slot].dtype == dtype
        torch.testing.assert_close(
            cache.layers[0].read(8)[slot], exact.layers[0].read(8)[slot].to(dtype), rtol=2**-7, atol=1e-5
        )


@torch.no_grad()
@pytest.mark.parametrize("num_kv_heads", [4, 1])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_cross_attention_over_a_remembered_memory_equals_that_over_each_memory_alone(
    qk_norm: bool, num_kv_heads: int
) -> None:
    layer = MultiHeadAttention(d_model=D_MODEL, num_heads=NUM_HEADS, num_kv_heads=num_kv_heads, qk_norm=qk_norm)
    memories = [torch.randn(length, D_MODEL) for length in (5, 2, 3)]
    cache = KVCache(num_layers=1, batch_size=3, num_kv_heads=num_kv_heads, max_len=7, head_size=HEAD_SIZE)
    poison(cache)
    layer.cache_cross_attention(padded(memories, 6), cache.layers[0], cache.extend(6, [5, 2, 3]))
    mask_B1S = torch.tensor([[[True] * 5], [[True] * 2 + [False] * 3], [[True] * 3 + [False] * 2]])
    for size in (1, 4, 5, 9):  # Reading changes nothing, however many queries there are.
        x_BTM = torch.randn(3, size, D_MODEL)
        y_BTM = layer(x_BTM, mask_BTS=mask_B1S, cache=cache.layers[0])
        for row, memory in enumerate(memories):
            assert_near(y_BTM[row], layer(x_BTM[row : row + 1], memory[None])[0])
    assert cache.lengths == [5, 2, 3]


@pytest.mark.parametrize("prefill", [[4, 4], [4, 1], [0, 3], None])
def test_the_place_of_a_compiled_step_reads_as_that_of_extend(prefill: list[int] | None) -> None:
    stack, one, other = Stack(), Stack().new_cache(2), Stack().new_cache(2)
    x = torch.randn(2, 4, D_MODEL)
    if prefill is not None:
        for cache in (one, other):
            stack.read(x, cache, prefill)
    address = one.lengths_B.data_ptr()
    for size in (1, 1, 3, 1):
        poison(one)
        new = torch.randn(2, size, D_MODEL)
        before = list(one.lengths)
        for _ in range(2):  # A place taken without advancing changes nothing that is looked at.
            place = one.next_positions(size, MAX_LEN)
            y_BTM = stack(new, one, place)
        assert one.lengths == one.lengths_B.tolist() == before
        assert place.mask_BTS is not None
        assert (place.slots, place.mask_BTS.shape) == (MAX_LEN, (2, size, MAX_LEN))
        one.advance(size)
        assert_near(y_BTM, stack.read(new, other))
        assert one.lengths == one.lengths_B.tolist() == other.lengths
    assert one.lengths_B.data_ptr() == address


def test_counts_rows_and_masks_that_do_not_fit_are_errors() -> None:
    cache = KVCache(num_layers=1, batch_size=2, num_kv_heads=1, max_len=8, head_size=4)
    for counts in ([4, 1], [-1, 2]):
        with pytest.raises(ValueError, match="^expected 0 to 3 tokens of each sequence, got "):
            cache.extend(3, counts)
    assert cache.lengths == [0, 0]
    with pytest.raises(ValueError, match="^expected 2 rows, got 1$"):
        cache.reorder([0])
    layer = MultiHeadAttention(d_model=4, num_heads=1)
    with pytest.raises(ValueError, match="^expected a mask of the tokens in a cache that is only read$"):
        layer(torch.zeros(2, 1, 4), cache=cache.layers[0])
