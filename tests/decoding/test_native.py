"""The native step: the same bits whatever else is read, and what happens where it cannot be had."""

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gpt_models import GPT2, random_model
from helpers import command
from seq2seq_models import random_model as random_encoder_decoder
from torch import Tensor, nn

import decoding.native.step
import layers.native.build
from data.pairs.batches import frame_source, padded
from data.tokenizers.vocabulary import PAD
from decoding.decoder import Decoder, Precision, convert
from decoding.native import FLAGS, SOURCE, NativeError, NativeStep, library
from gpt.config import ModelConfig
from gpt.model import GPT
from layers import KVCache, Memory
from layers.native.build import find_compiler
from seq2seq.model import EncoderDecoder
from training.runtime.errors import InputError

# Head sizes of 6, 32 and 84: none, two and five times the 16 numbers that are taken at once, and a rest.
SIZES = {
    "narrow": ModelConfig(num_layers=2, d_model=24, num_heads=4, num_kv_heads=2, d_ff=40, max_len=40),
    "wide": ModelConfig(num_layers=2, d_model=128, num_heads=4, num_kv_heads=2, d_ff=384, max_len=40),
    "long heads": ModelConfig(num_layers=2, d_model=168, num_heads=2, d_ff=52, max_len=40, positions="learned"),
    "GPT-2": replace(GPT2, head_dim=34, d_ff=77, activation="gelu", max_len=40),
}


@pytest.fixture(scope="session")
def built() -> Path:
    """The file of the library."""
    try:
        return Path(library()._name)
    except NativeError as error:
        pytest.skip(str(error))


@torch.inference_mode()
def read(step: NativeStep, model: GPT, tokens_BT: Tensor, pieces: Sequence[int], max_len: int = 40) -> Tensor:
    cache = model.new_cache(len(tokens_BT), max_len)
    return torch.cat([step(part_BT, cache) for part_BT in tokens_BT[:, : sum(pieces)].split(list(pieces), 1)], 1)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_a_texts_logits_are_the_same_to_the_last_bit_whatever_is_read_with_them(
    size: str, precision: Precision
) -> None:
    model = convert(random_model(SIZES[size]), precision)
    step = NativeStep(model)
    tokens_BT = torch.randint(19, (16, 40), generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            alone_TV = read(step, model, tokens_BT[:1], [1] * 36)[0]
            assert alone_TV.isfinite().all()
            for pieces in ([2, 3, 4, 5, 6, 7, 8, 1], [32, 4], [13, 1, 17]):
                at_once_TV = read(step, model, tokens_BT[:1], pieces, 36)[0]
                assert torch.equal(at_once_TV, alone_TV[: sum(pieces)])
            for batch, pieces in ((3, [1] * 20), (5, [1, 6, 1, 2, 3, 6]), (16, [2, 1, 1, 2])):
                others_BT = torch.randint(19, (batch, 40), generator=torch.Generator().manual_seed(batch))
                for row in (0, batch - 1):
                    others_BT[row] = tokens_BT[0]
                    among_TV = read(step, model, others_BT, pieces)[row]
                    assert torch.equal(among_TV, alone_TV[: sum(pieces)])
            # Among texts of other lengths: the others begin anew, and one of them with this very text.
            cache = model.new_cache(4)
            step(tokens_BT[:4, :7], cache)
            cache.reset([0, 1, 3])
            one_text_BT = tokens_BT[:1].expand(4, -1)
            cache.reset([2])
            step(one_text_BT[:, :7].contiguous(), cache)
            cache.reset([0, 3])
            ragged_BV = step(tokens_BT[0, torch.tensor([0, 7, 7, 0])][:, None], cache)[:, 0]
            assert torch.equal(ragged_BV, alone_TV[torch.tensor([0, 7, 7, 0])])
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("built")
@torch.inference_mode()
def test_a_targets_logits_are_the_same_to_the_last_bit_whatever_is_decoded_with_it() -> None:
    model = random_encoder_decoder(num_kv_heads=2)
    step = NativeStep(model)
    drawn = torch.Generator().manual_seed(2)
    sources = [torch.randint(3, 9, (length,), generator=drawn).tolist() for length in (7, 20, 1, 12, 7)]
    target_BT = torch.randint(3, 9, (5, 10), generator=drawn)
    # Sources are read alone, so that what is compared is the step.
    memories = [model.cache_cross_attention(model.encode(torch.tensor([frame_source(source)]))) for source in sources]
    together = model.cache_cross_attention(model.encode(padded([frame_source(source) for source in sources], PAD)))
    assert together.cache is not None
    for row, memory in enumerate(memories):
        assert memory.cache is not None
        for layer, own in zip(together.cache.layers, memory.cache.layers, strict=True):
            for stored_BHSD, own_BHSD in zip(layer.read(22), own.read(22), strict=True):
                stored_BHSD[row].fill_(torch.nan)[:, : own_BHSD.size(2)] = own_BHSD[0]
    alone_BTV = torch.cat(
        [
            read_targets(step, model, row_1T, memory, [1] * 10)
            for row_1T, memory in zip(target_BT.split(1), memories, strict=True)
        ]
    )
    assert alone_BTV.isfinite().all(), "what lies behind a source's end is not read"
    for pieces in ([1] * 10, [4, 1, 5]):
        assert torch.equal(read_targets(step, model, target_BT, together, pieces), alone_BTV)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("crossing", [False, True], ids=["GPT", "encoder-decoder"])
def test_threads_read_with_one_step_as_each_would_alone(crossing: bool) -> None:
    """Each with a cache of its own length, and for its own number of texts."""
    encoder_decoder = random_encoder_decoder(num_layers=6, max_len=72)
    gpt = random_model(replace(SIZES["wide"], num_layers=6, max_len=72))
    step = NativeStep(encoder_decoder if crossing else gpt)

    @torch.inference_mode()
    def read_own(number: int) -> list[Tensor]:
        torch.set_num_threads(1)
        tokens_BT = torch.randint(3, 9, (number + 1, 16), generator=torch.Generator().manual_seed(number))
        sources = padded([frame_source([3 + number] * (5 + 11 * number))] * (number + 1), PAD)
        memory = encoder_decoder.cache_cross_attention(encoder_decoder.encode(sources)) if crossing else None
        found = []
        for _ in range(20):
            cache = (encoder_decoder if crossing else gpt).new_cache(number + 1, 16 + 9 * number)
            found.append(torch.cat([step(token_B1, cache, memory) for token_B1 in tokens_BT.split(1, 1)], 1))
        return found

    before = torch.get_num_threads()
    expected = [read_own(number)[0] for number in range(4)]
    torch.set_num_threads(before)
    with ThreadPoolExecutor(4) as pool:
        for found, alone_BTV in zip(pool.map(read_own, range(4)), expected, strict=True):
            assert all(torch.equal(read_BTV, alone_BTV) for read_BTV in found)


def read_targets(
    step: NativeStep, model: EncoderDecoder, target_BT: Tensor, memory: Memory, pieces: Sequence[int]
) -> Tensor:
    cache = model.new_cache(len(target_BT), target_BT.size(1))
    return torch.cat([step(part_BT, cache, memory) for part_BT in target_BT.split(list(pieces), 1)], 1)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_the_number_of_threads_changes_no_bit(size: str) -> None:
    model = random_model(SIZES[size])
    step, tokens_BT = NativeStep(model), torch.randint(19, (1, 8))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = read(step, model, tokens_BT, [1, 5, 2])
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            assert torch.equal(read(step, model, tokens_BT, [1, 5, 2]), expected)
    finally:
        torch.set_num_threads(before)


class SquaredReLU(nn.Module):
    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x_BTM: Tensor) -> Tensor:
        return self.down(self.up(x_BTM).relu().square())


class SquaredGPT(GPT):
    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        for block in self.blocks:
            block.feed_forward = SquaredReLU(config.d_model, config.d_ff)


def assert_eager_instead(model: GPT, reason: str) -> None:
    assert Decoder(model).mode == Decoder(model, "auto").mode == "eager"
    with pytest.raises(InputError) as raised:
        Decoder(model, "native")
    assert str(raised.value) == f"there is no native step here: {reason}"


def test_a_model_with_parts_of_its_own_is_read_as_it_stands() -> None:
    model = random_model(SIZES["narrow"])
    model.__class__ = SquaredGPT
    assert_eager_instead(model, "the model has parts that it does not know: SquaredGPT")
    own = SquaredGPT(SIZES["narrow"], 19).eval()
    assert_eager_instead(own, "the model has parts that it does not know: SquaredGPT, SquaredReLU")
    tokens_BT = torch.randint(19, (1, 6))
    with torch.inference_mode():
        decoder, expected_BTV = Decoder(own), own(tokens_BT)
        cache = decoder.take_cache()
        read = [decoder.decode_step(part_BT, cache) for part_BT in tokens_BT.split(1, 1)]
    torch.testing.assert_close(torch.cat(read, 1), expected_BTV)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "swiglu"])
@torch.inference_mode()
def test_activations_are_torchs_over_their_whole_range(activation: Any) -> None:
    """Of numbers that the bias of `up` alone decides on."""
    shape = replace(GPT2, num_layers=1, d_ff=40, activation=activation, tie_embeddings=False)
    model = random_model(shape, 200)
    block = model.blocks[0]
    for x_F in torch.linspace(-100, 100, 400).view(-1, 40) * torch.tensor([[1.0], [0.1]]).repeat(5, 1):
        block.feed_forward.up.weight.zero_()
        block.feed_forward.up.bias.copy_(x_F)
        if activation == "swiglu":
            block.feed_forward.gate.weight.zero_()
            block.feed_forward.gate.bias.copy_(x_F)
        native = NativeStep(model)(*fresh(model, 3))
        torch.testing.assert_close(native, model(torch.tensor([[3]])), rtol=0, atol=2e-5)


@pytest.mark.usefixtures("built")
@torch.inference_mode()
def test_blocks_may_differ_in_their_feed_forward_layers() -> None:
    model = random_model(SIZES["narrow"])
    model.blocks[0].feed_forward = random_model(replace(SIZES["narrow"], d_ff=72)).blocks[0].feed_forward
    model.blocks[1].feed_forward = random_model(replace(SIZES["narrow"], activation="gelu")).blocks[0].feed_forward
    tokens_BT = torch.randint(19, (2, 9))
    expected_BTV = model(tokens_BT)
    read_BTV = read(NativeStep(model), model, tokens_BT, [1, 5, 3])
    assert (read_BTV - expected_BTV).abs().max() <= 1e-5 * expected_BTV.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_numbers_are_read_as_they_stand(dtype: torch.dtype) -> None:
    model = random_model(SIZES["narrow"]).to(dtype)
    assert_eager_instead(model, "it computes on the CPU, from weights in fp32, bf16 or int8")


def script(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return path


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, and a process that has not loaded the library yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(decoding.native.step, "library", library.__wrapped__)
    return tmp_path / "cache"


def test_without_a_compiler_there_is_no_native_step(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = "there is no C++ compiler: install g++, or name one in CXX"
    assert_eager_instead(random_model(SIZES["narrow"]), reason)
    for name in ("clang++", "g++"):
        script(tmp_path / name)
        assert find_compiler() == name
    monkeypatch.setenv("CXX", "mine")
    assert find_compiler() == "mine"
    assert not empty_cache.exists()


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (['[ "$1" = --version ] && exit', "echo; echo no such header >&2; echo more >&2; exit 1"], "no such header"),
        (["echo not licensed >&2", "exit 3"], "not licensed"),
        (['[ "$1" = --version ] && exit', "exit 7"], "exit code 7"),
    ],
    ids=["of what it compiles", "of its version", "silently"],
)
def test_the_first_line_of_a_compiler_that_fails_is_the_reason(
    lines: list[str], reason: str, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = script(tmp_path / "compiler", *lines)
    monkeypatch.setenv("CXX", str(compiler))
    assert_eager_instead(random_model(SIZES["narrow"]), f"{compiler} failed: {reason}")
    assert [path for path in empty_cache.rglob("*") if path.name != "transformers-from-scratch"] == []


def test_what_the_system_refuses_is_the_reason(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(NativeError, match="/no/such/compiler could not build it: .*No such file"):
        library.__wrapped__()
    monkeypatch.setenv("CXX", str(script(tmp_path / "compiler")))
    file = tmp_path / "a file where a folder should be"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    monkeypatch.setattr(tempfile, "tempdir", str(file))
    assert_eager_instead(
        random_model(SIZES["narrow"]),
        f"{tmp_path}/compiler could not build it: [Errno 20] Not a directory: "
        f"'{file}/transformers-from-scratch-native-{os.getuid()}'",
    )


def test_a_second_process_uses_what_the_first_has_built(
    built: Path, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, version = tmp_path / "log", tmp_path / "version"
    version.write_text("1")
    compiler = script(
        tmp_path / "compiler",
        f'echo "$@" >> {log}',
        f'if [ "$1" = --version ]; then cat {version}; exit; fi',
        f'for output; do :; done; cp {built} "$output"',  # The last argument.
    )
    monkeypatch.setenv("CXX", str(compiler))
    first = library.__wrapped__()._name
    assert Path(first).parent == empty_cache / "transformers-from-scratch"
    assert [path.name for path in empty_cache.rglob("*.so")] == [Path(first).name]
    environment = {"CXX": str(compiler), "XDG_CACHE_HOME": str(empty_cache)}
    asked = command("-c", "from decoding.native import library; print(library()._name)", cwd=tmp_path, **environment)
    assert asked.stdout.strip() == first, asked.stderr
    built_with = [line for line in log.read_text().splitlines() if line != "--version"]
    assert len(built_with) == 1
    assert "-march=native" in built_with[0]
    version.write_text("2")
    assert library.__wrapped__()._name != first, "another compiler builds its own"


@pytest.mark.usefixtures("built")
@torch.inference_mode()
def test_weights_live_as_long_as_the_step() -> None:
    model = random_model(SIZES["wide"])
    step, tokens_BT = NativeStep(model), torch.randint(19, (1, 6))
    before = read(step, model, tokens_BT, [6])
    caches = random_model(SIZES["wide"])
    for parameter in model.parameters():
        parameter.data = torch.full_like(parameter, torch.nan)
    rubbish = [torch.full_like(parameter, torch.nan) for _ in range(3) for parameter in model.parameters()]
    assert torch.equal(read(step, caches, tokens_BT, [6]), before)
    del rubbish


@pytest.mark.usefixtures("built")
def test_a_token_that_is_not_of_the_vocabulary_is_an_error_and_changes_nothing() -> None:
    model = random_model(SIZES["wide"])
    step, cache = NativeStep(model), model.new_cache()
    for token in (-1, model.vocab_size):
        with pytest.raises(IndexError, match=f"expected tokens from 0 to {model.vocab_size - 1}"):
            step(torch.tensor([[token]]), cache)
    assert cache.lengths == [0]
    assert torch.equal(step(torch.tensor([[3]], dtype=torch.int32), cache), NativeStep(model)(*fresh(model, 3)))


def fresh(model: GPT, token: int) -> tuple[Tensor, KVCache]:
    return torch.tensor([[token]]), model.new_cache()


@pytest.mark.parametrize("home", ["none", "not writable"])
def test_without_a_home_the_library_is_kept_where_nobody_else_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    def find_home() -> Path:
        if home == "none":
            raise RuntimeError("Could not determine home directory.")
        return Path("/proc")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", find_home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = layers.native.build._cache_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o077 == 0
    assert layers.native.build._cache_folder() == folder
    folder.chmod(0o777)
    with pytest.raises(NativeError, match="can be written to by others: set XDG_CACHE_HOME"):
        layers.native.build._cache_folder()


@pytest.mark.ci
@pytest.mark.usefixtures("built")
def test_a_damaged_library_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fingerprint = layers.native.build._fingerprint(find_compiler(), SOURCE, FLAGS)
    damaged = layers.native.build._cache_folder() / f"step-{fingerprint}.so"
    damaged.write_bytes(b"damaged")
    with pytest.raises(NativeError, match="could not build it"):
        library.__wrapped__()
    assert library.__wrapped__().read_tokens
