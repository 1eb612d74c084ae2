"""An encoder-decoder as a folder with a loader of its own, which writes the same targets with torch alone."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from seq2seq_models import POSITIONS, random_model, small_config
from tokenizers import Tokenizer as LibraryTokenizer

from data.tokenizers.symbols import Symbols
from data.tokenizers.tokenizer import make_tokenizer
from data.tokenizers.vocabulary import END, START, Vocabulary
from decoding.targets import decode
from seq2seq.export import LOADER, write_standalone
from seq2seq.model import EncoderDecoder
from seq2seq.task import LoadedSeq2Seq
from training.runtime.errors import InputError

LETTERS = Vocabulary(Symbols("abcdef", "characters"))
BIASES = {"attention_bias": True, "feed_forward_bias": True}
SHAPES: list[dict[str, Any]] = [
    *POSITIONS,
    {"positions": "learned", "norm": "layer", "activation": "gelu_tanh", "embedding_scale": 1.0, **BIASES},
    {"head_dim": 10, "rope_theta": 500.0, "rope_scaling": "linear:2", "activation": "gelu", "norm_eps": 1e-3},
]
VOCABULARIES = {
    "characters": (LETTERS, "abcabf"),
    "words": (Vocabulary(Symbols(["one", "two", "six"], "words")), "six one  two"),
    "bytes": (Vocabulary(make_tokenizer("bytes", [])), "\u00e9\u20ac!"),
}


def loaded(vocabulary: Vocabulary, **shape: Any) -> LoadedSeq2Seq:
    return LoadedSeq2Seq(random_model(len(vocabulary), **shape), vocabulary, small_config(), "raw", "0" * 64)


def with_loader(exported: LoadedSeq2Seq, folder: Path) -> Any:
    """The module that goes along."""
    folder.mkdir()
    write_standalone(exported, folder)
    spec = spec_from_file_location("load", folder / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def target_of(exported: LoadedSeq2Seq, source: str) -> str:
    (found,) = decode(exported.model, [exported.vocabulary.encode(source)], mode="eager")
    return exported.vocabulary.decode(found.tokens)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: " ".join(map(str, shape.values())))
@torch.no_grad()
def test_every_shape_has_the_same_logits_and_the_same_target(shape: dict[str, Any], tmp_path: Path) -> None:
    ours = loaded(LETTERS, **shape)
    theirs = with_loader(ours, tmp_path / "model")
    source, target = LETTERS.encode("abcabf"), [START, 4, 5, 3, 7]
    expected = ours.model.logits(ours.model.hidden_states(torch.tensor([target]), ours.model.encode_sources([source])))
    states = theirs.run(target, "decoder", theirs.run([START, *source, END], "encoder"))
    assert (theirs.layer(states, "head") - expected[0]).abs().max() <= 1e-6 * expected.abs().max()
    assert theirs.translate("abcabf") == target_of(ours, "abcabf")


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_vocabulary_gives_the_same_text(name: str, tmp_path: Path) -> None:
    vocabulary, source = VOCABULARIES[name]
    ours = loaded(vocabulary)
    assert with_loader(ours, tmp_path / "model").translate(source) == target_of(ours, source)


def test_subwords_go_through_their_own_library(tmp_path: Path) -> None:
    vocabulary = Vocabulary(make_tokenizer("bpe:300", ["one two six \u20ac " * 50]))
    ours = loaded(vocabulary)
    theirs = with_loader(ours, tmp_path / "model")
    tokenizer = LibraryTokenizer.from_file(str(tmp_path / "model/tokenizer.json"))
    written = theirs.write(tokenizer.encode("two six").ids)
    assert tokenizer.decode(written) == target_of(ours, "two six")


@pytest.mark.ci
def test_the_loader_needs_torch_alone(tmp_path: Path) -> None:
    ours = loaded(LETTERS)
    (tmp_path / "model").mkdir()
    write_standalone(ours, tmp_path / "model")
    others = "{'accelerate', 'safetensors', 'tokenizers', 'layers', 'training', 'data', 'seq2seq'}"
    script = "import sys; sys.path.insert(0, '.'); import load; print(load.translate('abcabf'));"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"{script} assert not {others} & set(sys.modules)"],
        cwd=tmp_path / "model",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{target_of(ours, 'abcabf')}\n", done.stderr
    assert done.returncode == 0, done.stderr


def test_the_loader_is_short() -> None:
    assert len(LOADER.read_text().splitlines()) <= 60


def test_a_model_with_parts_of_its_own_is_refused(tmp_path: Path) -> None:
    class Backwards(EncoderDecoder):
        pass

    model = random_model(len(LETTERS))
    other = Backwards(model.config, model.vocab_size)
    with pytest.raises(InputError, match="the loader knows no Backwards: it is no EncoderDecoder in its class$"):
        write_standalone(LoadedSeq2Seq(other, LETTERS, small_config(), "raw", ""), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_files_are_json_and_safetensors(tmp_path: Path) -> None:
    ours = loaded(LETTERS)
    write_standalone(ours, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "load.py"}
    assert json.loads((tmp_path / "config.json").read_text())["symbols"] == list("abcdef")
    load_file = pytest.importorskip("safetensors.torch").load_file
    assert torch.equal(load_file(tmp_path / "model.safetensors")["head.weight"], ours.model.head.weight)
