"""The GPT as a task for the training loop, and loading it from a checkpoint."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from accelerate import Accelerator

from data.answers.windows import AnswerData
from data.batches.mixed import MixedData
from data.batches.windows import TextData
from data.cache.tokens import sha256
from data.config import TextConfig, Unknown
from data.measurable import measurable_answers, measurable_text
from data.text import Source, load_source
from data.tokenizers.chat import Chat
from data.tokenizers.tokenizer import Tokenizer, chat_of, follow_chat, read_tokenizer, unit_of
from decoding.choices import DEFAULT_TEMPERATURE, SAMPLE_LENGTH, Mode
from decoding.decoder import Decoder
from decoding.sampling import Sampling
from decoding.writing import write
from gpt.adapter import add_adapter, put_on_base
from gpt.beginning import agreed, begin, check_covered, initial_tokenizer
from gpt.config import GPTConfig
from gpt.initial_config import completed, given_in_code
from gpt.model import GPT
from layers.lora import merge_lora
from training.evaluation import mean_loss
from training.run import Result, train
from training.runtime.errors import InputError, require_finite
from training.seeds import generator
from training.storage.checkpoint import Checkpoint
from training.storage.loading import Device, Loaded, Weights, load_model
from training.storage.run_folder import RunFolder, begun_run
from training.task import Begun, evaluating, tokens_at_once

TOKENIZER_FILE = "tokenizer.json"


class GPTTask:
    """A fresh GPT and its text. Subclasses may bring another model, another text, or more metrics.

    Args:
        config: The configuration.
        run: The run that goes on, of those that began with a model that exists: it has that one's tokenizer. None for
            one that starts.
    """

    model_type = "gpt"
    model_class: type[GPT] = GPT
    data_class: type[TextData] = TextData
    shows_samples = False
    sample_length = SAMPLE_LENGTH

    def __init__(self, config: GPTConfig, run: RunFolder | None = None) -> None:
        self.config = config
        tokenizer = initial_tokenizer(config, run)
        source, of_run = self.load_source(), (config.model.max_len, config.seed, config.data)
        if source.rows is None:
            check_covered(source, config, tokenizer)
        self.data: TextData | MixedData | AnswerData
        if source.rows is not None:
            self.data = AnswerData(source, *of_run, tokenizer)
        elif source.parts:
            self.data = MixedData(source, *of_run, self.data_class, tokenizer)
        else:
            self.data = self.data_class(source, *of_run, *([] if tokenizer is None else [tokenizer]))
        self._chat = chat_of(self.data.tokenizer)
        self.model = self.model_class(config.model, len(self.data.tokenizer))
        self.model.init_weights(generator(config.seed, "weights"))
        add_adapter(self.model, config)
        # Of each target: where few tokens are targets, all of them are computed for these.
        self.flops_per_token = self.model.flops_per_token() * tokens_at_once(self.data) / self.data.tokens_per_sample

    def begin(self, checkpoint: Checkpoint | None) -> Begun:
        """Take the weights that the configuration's `init_from` names, unless the run goes on from a checkpoint."""
        self.config, origin = begin(self.config, self.model, self.data.tokenizer, checkpoint)
        return Begun(self.config, origin)

    def load_source(self) -> Source:
        """The text to learn."""
        return load_source(self.config.data)

    def sample(self, seed: int) -> str:
        """`sample_length` tokens that follow a line break, or fewer where the model ends the text.

        Of rows with answers, the first prompt that is validated on, and what answers it; a line break too where that
        is none that can be read.
        """
        tokenizer, length = self.data.tokenizer, self.sample_length
        asked = self.data.prompt if isinstance(self.data, AnswerData) else ""
        prompt = asked if can_read(tokenizer, asked) else default_prompt(tokenizer)
        written = "".join(sample_text(self.model, tokenizer, prompt, max_new_tokens=length, seed=seed))
        return f"{prompt}{written}" if asked else written

    def metrics(self, val_loss: float | None) -> Mapping[str, float]:
        """Perplexity and bits per byte, and per character where those are the tokens."""
        if val_loss is None:
            return {}
        data = self.data
        return text_metrics(val_loss, data.validation_targets, data.validation_bytes, data.tokenizer)

    def checkpoint_files(self) -> Mapping[str, str]:
        """The tokenizer, and the chat template that came with it."""
        return {TOKENIZER_FILE: self.data.tokenizer.to_json()} | ({} if self._chat is None else self._chat.files())


def default_prompt(tokenizer: Tokenizer) -> str:
    """A line break, or the first token of a vocabulary without it that can be read again."""
    texts = chain("\n", (tokenizer.decode([token]) for token in range(len(tokenizer))))
    return next((text for text in texts if can_read(tokenizer, text)), "\n")


def can_read(tokenizer: Tokenizer, prompt: str) -> bool:
    """Whether there is a text, and a vocabulary has all that it is made of; a chat template may refuse it as well."""
    try:
        return bool(prompt and tokenizer.encode_prompt(prompt))
    except InputError:
        return False


def text_metrics(loss: float, num_targets: int, num_bytes: int, tokenizer: Tokenizer) -> dict[str, float]:
    """Other measures of a loss in nats per token.

    Args:
        loss: The mean over all targets.
        num_targets: How many they are.
        num_bytes: Of how many bytes of UTF-8 they are made.
        tokenizer: What made them.

    Returns:
        `perplexity`, exp(loss); `bits_per_byte`, which compares across tokenizers; and `bits_per_character`,
        loss / ln 2, where a token is a character.
    """
    bits = loss / math.log(2)
    metrics = {"perplexity": math.exp(min(loss, 700.0)), "bits_per_byte": bits * num_targets / max(num_bytes, 1)}
    return metrics | ({"bits_per_character": bits} if unit_of(tokenizer) == "character" else {})


def sample_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int = SAMPLE_LENGTH,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """Continue `prompt` with a model that may be in training, token by token, past the end of its context.

    `decoding.writing.write` is faster and can do more, with a model that no longer changes.
    """
    # On a GPU a step would have to be compiled first.
    mode: Mode = "auto" if model.embedding.weight.device.type == "cpu" else "eager"
    with evaluating(model):
        pieces = write(
            Decoder(model, mode),
            tokenizer,
            prompt,
            max_new_tokens=max_new_tokens,
            sampling=sampling or Sampling(temperature=DEFAULT_TEMPERATURE),
            seed=seed,
            when_full="slide",
        )
        yield from (piece.text for piece in pieces)


def train_gpt(
    config: GPTConfig, *, task: type[GPTTask] = GPTTask, output_dir: Path | None = None, resume: bool = False
) -> Result:
    """Train a GPT; see `training.run.train`."""
    run = begun_run(config.name, output_dir) if resume else None
    config, notes = completed(config, given_in_code(config), run, resume)
    return train(lambda: make_task(task, config, run), config, output_dir=output_dir, resume=resume, notes=notes)


def make_task(task: type[GPTTask], config: GPTConfig, run: RunFolder | None) -> GPTTask:
    """The task of a run, which one that began with a model that exists may go on with; all processes call this."""
    config = agreed(config)
    return task(config) if run is None or config.init_from is None else task(config, run)


class LoadedGPT(Loaded[GPT, Tokenizer, GPTConfig]):
    """A trained GPT, ready to sample from."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its vocabulary."""
        return self.vocabulary

    @property
    def chat(self) -> Chat | None:
        """How conversations are written, of a model that learnt some."""
        return None if self.config.data.messages_column is None else chat_of(self.tokenizer)


def load_gpt(
    path: Path | str,
    device: Device = "cpu",
    *,
    weights: Weights | None = None,
    model_class: type[GPT] | None = None,
    trust_code: bool = False,
) -> LoadedGPT:
    """Load the GPT of a run's best checkpoint, or of one checkpoint, as `model_class`; see `load_model`.

    An adapter is merged into its base, which is read from where the run found it.
    """
    reader = GPT, GPTConfig, TOKENIZER_FILE, read_tokenizer, "GPT"
    asked = path, device, weights, model_class, *reader
    loaded = LoadedGPT(*load_model(*asked, trust_code=trust_code, prepare=put_on_base))
    merge_lora(loaded.model)
    follow_chat(loaded.tokenizer, loaded.config.data)
    return loaded


class Measured(NamedTuple):
    """A loss in nats per token, what it was measured on, in words, and other measures; see `text_metrics`."""

    loss: float
    description: str
    metrics: dict[str, float]


def measure_split(
    accelerator: Accelerator,
    loaded: LoadedGPT,
    split: Literal["train", "val"],
    asked: TextConfig | None = None,
    unknown: Unknown | None = None,
) -> Measured:
    """Measure the loss over every target of a split.

    Args:
        accelerator: Where and in what precision to compute.
        loaded: The model.
        split: Which part of the text.
        asked: Another text than that of the run; None for the run's own.
        unknown: What to do with characters that the model does not know; None for what the run did.

    Raises:
        InputError: The text of the run has changed, and no other was asked for; or its characters are unknown or too
            few.
        NonFiniteError: The loss is not finite.
    """
    config = loaded.config
    source = load_source(asked or config.data)
    same = sha256(source, asked or config.data, loaded.tokenizer) == loaded.data_sha256
    if not same and asked is None:
        raise InputError(
            f"{source.origin} is not the text that the run was trained on (its SHA-256 differs): "
            f"to measure on it all the same, name it again with --data.source"
        )
    description = f"{split} split of {source.origin}"
    data = replace(asked or config.data, unknown=unknown or (asked or config.data).unknown)
    share = config.training.eval_batch_size, accelerator.process_index, accelerator.num_processes
    measurable = measurable_answers if source.rows is not None else measurable_text
    found = measurable(source, data, loaded.tokenizer, split, config.model.max_len, share)
    if found.num_targets < 1:
        raise InputError(f"the {description} has {found.said}, too few to predict one from another")
    model = accelerator.prepare_model(loaded.model.to(accelerator.device), evaluation_mode=True)
    notes = [*found.notes, *([] if same else ["another text than the run's"])]
    said = "".join(f", {note}" for note in dict.fromkeys([*notes, *source.notes]))
    loss = mean_loss(accelerator, model, found.batches)
    require_finite([loss], f"the loss on the {description}")
    metrics = text_metrics(loss, found.num_targets, found.num_bytes, loaded.tokenizer)
    return Measured(loss, f"{description}, {found.num_targets:,} targets{said}", metrics)
