"""How a run begins with a model that exists: its tokenizer, and the weights of that model in its own.

Shapes: V vocabulary, M model size.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from data.cache.scan import scanned
from data.listing import listed, shown_symbol
from data.text import Source
from data.tokenizers.characters import CharTokenizer
from data.tokenizers.chat import Chat
from data.tokenizers.subwords import SubwordTokenizer
from data.tokenizers.tokenizer import Tokenizer, chat_of, read_tokenizer
from gpt.config import GPTConfig
from gpt.initial_weights import TABLES, TOKENIZER_FILE, Base, open_origin, read_base
from training.config.command_line import parse_config_text
from training.runtime.errors import CommandError, InputError
from training.runtime.processes import from_main_process, once_per_machine
from training.seeds import generator
from training.storage.checkpoint import Checkpoint, CheckpointStore
from training.storage.run_folder import RunFolder
from training.storage.state import saved_state

MAX_LISTED = 16


def agreed(config: GPTConfig) -> GPTConfig:
    """A configuration with the beginning that the main process knows: another machine may have no run that goes on.

    What is read on every machine is read where the main process has it, or where this machine's own command says.

    Raises:
        InputError: Some processes were told to begin with a model that exists, and some were not.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return config
    configs = gather_object([config])
    main = configs[0]
    for rank, other in enumerate(configs):
        if (other.init_from is None) != (main.init_from is None):
            raise InputError(
                f"init_from is {main.init_from!r} on rank 0, {other.init_from!r} on rank {rank}: start the same "
                f"command on every machine"
            )
    if main.init_from is None:
        return config
    data = config.data if main.init_vocabulary == "shared" else replace(config.data, tokenizer=main.data.tokenizer)
    return replace(
        config,
        model=replace(main.model, dropout=config.model.dropout),
        data=data,
        init_from=main.init_from if Path(main.init_from).exists() else config.init_from,
        init_sha256=main.init_sha256,
        init_vocabulary=main.init_vocabulary,
    )


def initial_tokenizer(config: GPTConfig, run: RunFolder | None) -> Tokenizer | None:
    """The tokenizer of a run that begins with another's: of its own checkpoint where it goes on, else of its source.

    The main process reads it for all. None where the run takes the one that its configuration names.
    """
    if config.init_from is None or config.init_vocabulary == "shared":
        return None
    source = config.init_from

    def find() -> tuple[str, Path]:
        for folder in [] if run is None else CheckpointStore(run.checkpoints).newest_first():
            with suppress(InputError, OSError):
                return Checkpoint(folder, in_part=True).text(TOKENIZER_FILE), folder / TOKENIZER_FILE
        origin = open_origin(source)
        return origin.tokenizer_json, origin.tokenizer_file

    def read() -> tuple[str, Path, Chat | None]:
        content, file = find()
        return content, file, chat_of(read_tokenizer(content, file))

    content, file, chat = from_main_process(read)
    tokenizer = read_tokenizer(content, file)
    if isinstance(tokenizer, SubwordTokenizer):
        tokenizer.chat = chat  # Other machines may not have what lies beside the file.
    return tokenizer


def check_covered(source: Source, config: GPTConfig, tokenizer: Tokenizer | None) -> None:
    """Raise an `InputError` with the ways out where a text has characters that the source's vocabulary lacks."""
    if not isinstance(tokenizer, CharTokenizer) or config.data.unknown == "skip":
        return
    parts = config.data.parts or {"": config.data}

    def find() -> str:
        scans = [scanned(source.parts.get(name, source), part) for name, part in parts.items()]
        texts = [scan for found in scans for scan in (found.text, found.validation) if scan is not None]
        return "".join(sorted({character for scan in texts for character in scan.distinct} - set(tokenizer.characters)))

    unknown = once_per_machine(find)
    if unknown:
        raise InputError(
            f"{source.origin} has {len(unknown):,} characters that the vocabulary of {config.init_from} lacks: "
            f"{listed([shown_symbol(character) for character in unknown], MAX_LISTED)}; take a text without them "
            f"(--data.unknown skip leaves them out), or add --init_vocabulary shared, which gives them new rows"
        )


def begin(
    config: GPTConfig, model: nn.Module, tokenizer: Tokenizer, checkpoint: Checkpoint | None
) -> tuple[GPTConfig, str | None]:
    """Give the model of a run that starts its first weights; one that goes on has them in its checkpoint.

    But what an adapter is put on is in no checkpoint, and is read each time.

    All processes call this, and each reads the weights.

    Returns:
        The configuration with their place and SHA-256, and where they come from.

    Raises:
        InputError: The source is gone or is not what it was, its weights are not those of such a model, or processes
            have read different ones.
    """
    source = config.init_from
    if source is None:
        return config, None
    if checkpoint is not None:
        saved = str(saved_state(checkpoint).identity.get("init_sha256"))
        config = replace(config, init_sha256=config.init_sha256 or saved)
        if not config.lora.rank:  # Another place that is asked for is not read, and is none that the run began with.
            began = parse_config_text(type(config), checkpoint.text("config.yaml")).init_from
            unread = "" if began == source else f"; {source} is not read"
            return replace(config, init_from=began), f"as of {began} when the run began (SHA-256 {saved[:12]}){unread}"
    base = _agreed(config)
    weights, said = base.weights, ""
    if config.init_vocabulary == "shared":
        weights, kept = with_shared_rows(weights, base.origin.tokenizer, tokenizer, generator(config.seed, "new rows"))
        said = f", rows of {kept:,} of {len(tokenizer):,} tokens"
    fill(model, weights, source)
    origin = f"{base.origin.description}, SHA-256 {base.sha256[:12]}{said}"
    return replace(config, init_from=str(base.origin.path), init_sha256=base.sha256), origin


def _agreed(config: GPTConfig) -> Base:
    """The weights of the source, which all processes have read alike; an error of one is raised in all, with its rank.

    Where all have one, each raises its own.
    """
    base: Base | None = None
    error: CommandError | None = None
    try:
        base = read_base(config)
    except CommandError as refused:
        error = refused
    outcomes = gather_object([(None if base is None else base.sha256, error)])
    for rank, (sha256, other) in enumerate(outcomes):
        if other is not None:
            if all(fault is not None for _, fault in outcomes):
                raise error or other
            raise InputError(f"{other} (that is on rank {rank}: every machine needs the same files)") from other
        if sha256 != outcomes[0][0]:
            raise InputError(
                f"init_from: the weights of {config.init_from} have the SHA-256 {outcomes[0][0]} on rank 0, {sha256} "
                f"on rank {rank}: copy the same files to every machine"
            )
    assert base is not None
    return base


def fill(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a model that has the same, by name and shape; its adapter, if it has one, stays as it is."""
    adapter = getattr(model, "adapter", ())
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in adapter}
    faults = [f"{name} is missing" for name in own.keys() - weights.keys()]
    faults += [f"{name} is unknown" for name in weights.keys() - own.keys()]
    for name in own.keys() & weights.keys():
        if own[name].shape != weights[name].shape:
            faults.append(f"{name} has the shape {tuple(weights[name].shape)}, expected {tuple(own[name].shape)}")
    if faults:
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise InputError(
            f"init_from: the weights of {source} are not those of a {type(model).__name__}: {min(faults)}{more}"
        )
    for name, tensor in own.items():
        tensor.copy_(weights[name])


def with_shared_rows(
    weights: Mapping[str, Tensor], old: Tokenizer, new: Tokenizer, draws: torch.Generator
) -> tuple[dict[str, Tensor], int]:
    """Weights for another vocabulary: rows of tokens that stand for the same bytes are kept, the others are new.

    A new row is drawn, for each column with the mean and deviation of the old rows, which is how large the model
    expects it. A head with weights of its own has their mean, so that no new token is likelier than an old one.

    Args:
        weights: With rows for the tokens of `old`.
        old, new: The vocabularies.
        draws: Where new rows come from.

    Returns:
        The weights, and how many rows are kept.
    """
    tokens = {_known_by(old, token): token for token in reversed(range(len(old)))}
    kept = [(token, tokens[_known_by(new, token)]) for token in range(len(new)) if _known_by(new, token) in tokens]
    to, of = torch.tensor(kept, dtype=torch.long).reshape(-1, 2).unbind(1)
    changed = dict(weights)
    for name in TABLES:
        if name in weights:
            old_VM = weights[name]
            new_VM = old_VM.mean(0).repeat(len(new), 1)
            if name == TABLES[0]:
                new_VM += torch.randn(new_VM.shape, generator=draws) * old_VM.std(0, correction=min(1, len(old) - 1))
            new_VM[to] = old_VM[of]
            changed[name] = new_VM
    return changed, len(kept)


def _known_by(tokenizer: Tokenizer, token: int) -> bytes | int | None:
    """What two vocabularies must have in common for a row: bytes, or that a token ends a text; ids of none differ."""
    if token == tokenizer.end_of_text:
        return None
    return tokenizer.token_bytes(token) or -1 - token
