"""What `launch/export.py` does with an encoder-decoder: a folder with a loader of its own, for whoever has torch."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.tokenizers.byte_tokenizer import NUM_BYTES
from data.tokenizers.characters import CharTokenizer
from data.tokenizers.library_tokenizer import library_tokenizer
from data.tokenizers.subwords import SubwordTokenizer
from data.tokenizers.symbols import Symbols
from data.tokenizers.vocabulary import Vocabulary
from seq2seq.model import EncoderDecoder
from seq2seq.task import LoadedSeq2Seq, load_seq2seq
from training.config.command_line import Namespace
from training.publishing.folder import new_folder, write_json
from training.publishing.model_card import Card, card_file, model_rows, name_alone
from training.publishing.numbers import run_figures
from training.publishing.parts import foreign_part
from training.runtime.errors import InputError
from training.storage.finding import find_checkpoint, open_checkpoint
from training.storage.tensor_file import file_order, write_tensors

LOADER = Path(__file__).with_name("standalone.py")
"""What goes along as load.py."""
USAGE = (
    "In this folder, with torch alone:\n\n```python\nfrom load import translate\n\nprint(translate({example!r}))\n```"
)
USAGE_OF_SUBWORDS = """In this folder, with torch and the package tokenizers:

```python
from tokenizers import Tokenizer

from load import write

tokenizer = Tokenizer.from_file("tokenizer.json")
print(tokenizer.decode(write(tokenizer.encode("TEXT").ids)))
```"""


def export(options: Namespace) -> None:
    """Write the folder that the options of `launch/export.py` ask for."""
    # Of one that still trains, another checkpoint may be the best one by the time that the card is written.
    checkpoint = find_checkpoint(Path(options.checkpoint)).resolve()
    loaded = load_seq2seq(checkpoint, weights=options.weights, trust_code=options.trust_code)
    output = Path(options.output)
    with new_folder(output) as folder:
        write_standalone(loaded, folder)
        name = options.push_to_hub or output.resolve().name
        card_file(folder, model_card(loaded, checkpoint, name, options.license))


def write_standalone(loaded: LoadedSeq2Seq, folder: Path) -> None:
    """Write weights, configuration, vocabulary and loader.

    Args:
        loaded: Model and vocabulary.
        folder: Where the files go.

    Raises:
        InputError: The model has parts of its own.
        OSError: The disk refuses.
    """
    model, vocabulary = loaded.model, loaded.vocabulary
    with torch.device("meta"):
        plain = EncoderDecoder(model.config, model.vocab_size)
    if part := foreign_part(model, plain):
        raise InputError(f"the loader knows no {type(model).__name__}: it is no EncoderDecoder in {part}")
    write_json(folder / "config.json", _config(model) | _symbols(vocabulary))
    if isinstance(vocabulary.tokenizer, SubwordTokenizer):
        write_json(folder / "tokenizer.json", library_tokenizer(vocabulary.tokenizer))
    weights = {name: tensor.contiguous() for name, tensor in _weights(model).items()}
    write_tensors(folder / "model.safetensors", weights, (weights[name] for name in file_order(weights)))
    (folder / "load.py").write_bytes(LOADER.read_bytes())


def _config(model: EncoderDecoder) -> dict[str, Any]:
    """What the loader must know besides weights."""
    config = model.config
    half = config.kv_heads // 2 if config.crossing == "both_ends" else config.kv_heads
    return {
        "num_layers": config.num_layers,
        "head_size": config.head_size,
        "max_len": config.max_len,
        "norm_eps": config.norm_eps,
        "gelu": {"gelu": "none", "gelu_tanh": "tanh"}.get(config.activation),
        "crossing": int(config.crossing != "content"),  # Whether cross-attention knows positions.
        "from_end": [int(head >= half) for head in range(config.kv_heads)],  # Which heads count them from the end.
    }


def _symbols(vocabulary: Vocabulary) -> dict[str, Any]:
    """The vocabulary, as the loader reads it: bytes are the first 256 characters, which Latin-1 makes of them."""
    tokenizer = vocabulary.tokenizer
    if isinstance(tokenizer, SubwordTokenizer):
        return {}
    usual = {"separator": "", "encoding": "utf-8"}
    if isinstance(tokenizer, Symbols):
        return usual | {"symbols": tokenizer.symbols, "separator": tokenizer.separator}
    if isinstance(tokenizer, CharTokenizer):
        return usual | {"symbols": list(tokenizer.characters)}
    return usual | {"symbols": [*map(chr, range(NUM_BYTES)), ""], "encoding": "latin-1"}


@torch.no_grad()
def _weights(model: EncoderDecoder) -> dict[str, Tensor]:
    """All weights, a head even where the embedding is one, and tables of all kinds of positions."""
    weights = dict(model.state_dict())
    embedding = weights.pop("embedding.weight")
    weights |= {"embedding": embedding * model.embedding_scale, "head.weight": weights.get("head.weight", embedding)}
    for kind in ("weight", "bias"):
        if f"norm.{kind}" in weights:
            weights[f"decoder_norm.{kind}"] = weights.pop(f"norm.{kind}")
    config = model.config
    positions = torch.arange(config.max_len)
    added = embedding.new_zeros(1, config.max_len, config.d_model)
    weights["positions"] = (added if model.positions is None else model.positions(added))[0]
    weights.pop("positions.embedding.weight", None)
    cos, sin = torch.ones(config.max_len, config.head_size), torch.zeros(config.max_len, config.head_size)
    if model.rotary is not None:
        cos, sin = (table.clone() for table in model.rotary(config.max_len, positions[None])[:2])
        cos, sin = cos[0, 0], sin[0, 0]
        sin[:, : config.head_size // 2] *= -1  # So that the halves of a head have but to change places.
    return weights | {"cos": cos, "sin": sin}


def model_card(loaded: LoadedSeq2Seq, checkpoint: Path, name: str, licence: str | None) -> Card:
    """What the card of an exported encoder-decoder says."""
    config, data = loaded.config, loaded.config.data
    layers = f"{config.model.num_layers} of the encoder, {config.model.num_layers} of the decoder"
    subwords = isinstance(loaded.vocabulary.tokenizer, SubwordTokenizer)
    example = data.symbols[: data.max_length][:3] if data.task != "pairs" else "TEXT"
    source = f"{data.task} of strings of symbols" if data.task != "pairs" else name_alone(data.source or "")
    hub = data.hub_name
    return Card(
        name=name,
        about="An encoder-decoder transformer that writes a target for a source, trained from scratch.",
        usage=USAGE_OF_SUBWORDS if subwords else USAGE.format(example=example),
        front={"library_name": "pytorch", "pipeline_tag": "text2text-generation", "tags": ["encoder-decoder"]},
        shape=model_rows(loaded, layers, name_alone(data.tokenizer)),
        data={"pairs": source, "SHA-256": loaded.data_sha256},
        datasets=() if hub is None else (hub,),
        licence=licence,
        config=config,
        figures=run_figures(open_checkpoint(checkpoint, in_part=True), loaded.weights),
    )
