"""A model card: the README.md that goes with a model, as the Hugging Face hub reads it.

front matter    YAML for machines: licence, library, data sets, losses
the rest        Markdown for people: how to use it, what it is, what it was trained on, how and how well
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from training.config.plain_yaml import dump_yaml
from training.config.sections import RunConfig
from training.publishing.numbers import RunFigures

if TYPE_CHECKING:
    from training.storage.loading import Loaded

NO_PATHS = {"symbols", "include", "revision", "subset"}
"""Options that may hold a slash and no path, besides those of columns; a configuration of one's own may have others."""
NAMES = {
    "val_loss": "validation loss, nats per token",
    "val_loss_subset": "loss over a part of the validation split, nats per token",
    "bits_per_byte": "bits per byte",
    "bits_per_character": "bits per character",
    "perplexity": "perplexity",
    "token_accuracy": "token accuracy",
    "exact_match": "exact match",
}
"""What the measures of a run are called; those of other tasks keep their names."""
MAX_ROWS = 12


def model_rows(loaded: "Loaded[Any, Any, Any]", layers: str, kind: str) -> dict[str, str]:
    """The rows of the table of a model: how many `layers` it has, and of what `kind` its tokens are, in words."""
    return {
        "parameters": f"{sum(p.numel() for p in loaded.model.parameters()):,}",
        "layers": layers,
        "context": f"{loaded.config.model.max_len:,} tokens",
        "vocabulary": f"{loaded.model.vocab_size:,} tokens ({kind})",
        "weights": "the moving average of the training's (ema)" if loaded.weights == "ema" else "those of the step",
    }


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model card says.

    Attributes:
        name: Of the model.
        about: What it is, in a sentence or two.
        usage: How to use it, in Markdown.
        front: What machines read, besides licence, data sets and losses.
        shape: Rows of the table of the model: its parameters and so on.
        data: Rows of the table of what it was trained on.
        datasets: Their names on the hub.
        licence: The hub's word for it, such as mit; None where none is given.
        config: Of the run.
        figures: What the run came to.
    """

    name: str
    about: str
    usage: str
    front: Mapping[str, Any]
    shape: Mapping[str, str]
    data: Mapping[str, str]
    datasets: tuple[str, ...] = ()
    licence: str | None = None
    config: RunConfig
    figures: RunFigures

    def __str__(self) -> str:
        """The content of README.md."""
        front = yaml.safe_dump(self._front(), sort_keys=False, allow_unicode=True)
        licence = self.licence or "none was given: ask whoever trained the model before you use it"
        config = dump_yaml(without_folders(asdict(self.config)))
        parts = [
            f"# {self.name}\n\n{self.about}",
            f"## Use\n\n{self.usage}",
            f"## Model\n\n{_table(self.shape)}",
            f"## Data\n\n{_table(self.data)}",
            f"## Figures\n\n{_table(self._measured() | dict(self.figures.training))}",
            *([f"## Losses\n\n{self._losses()}"] if self.figures.losses else []),
            f"## Configuration\n\n```yaml\n{config.strip()}\n```",
            f"## Licence\n\nLicence: {licence}.",
        ]
        return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"

    def _front(self) -> dict[str, Any]:
        front = ({"license": self.licence} if self.licence else {}) | dict(self.front)
        if self.datasets:
            front["datasets"] = list(self.datasets)
        if self.figures.measures:
            metrics = [
                {"type": name, "value": value, "name": NAMES.get(name, name)} for name, value in self._rounded().items()
            ]
            kind = self.datasets[0] if self.datasets else "other"
            measured_on = {"name": f"validation split of {next(iter(self.data.values()))}", "type": kind}
            result = {"task": {"type": self.front["pipeline_tag"]}, "dataset": measured_on, "metrics": metrics}
            front["model-index"] = [{"name": self.name, "results": [result]}]
        return front

    def _rounded(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in self.figures.measures.items()}

    def _measured(self) -> dict[str, str]:
        return {NAMES.get(name, name.replace("_", " ")): f"{value:.4f}" for name, value in self._rounded().items()}

    def _losses(self) -> str:
        losses = self.figures.losses
        every = -(-len(losses) // MAX_ROWS)
        kept = losses[::-1][::every][::-1]  # The last one is always among them.
        rows = [f"| {step:,} | {train} | {validation:.4f} |" for step, train, validation in kept]
        return "\n".join(["| step | training | validation |", "|---|---|---|", *rows])


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_in_cell(value)} |" for name, value in rows.items())])


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|")


def without_folders(value: Any, name: str = "") -> Any:
    """A configuration whose paths are names alone: whose folders they lie in is nobody's business."""
    if isinstance(value, dict):
        return {key: without_folders(inner, key) for key, inner in value.items()}
    if not isinstance(value, str) or name in NO_PATHS or name.endswith("column"):
        return value
    return ",".join(map(name_alone, value.split(",")))


def name_alone(source: str) -> str:
    """A path without its folders; what is on the hub keeps its owner."""
    return source if source.startswith("hub:") else re.sub(r"(?:[^/=]*/)+(?=[^/=])", "", source)


def card_file(folder: Path, card: Card) -> None:
    """Write the card of a model into its folder."""
    (folder / "README.md").write_text(str(card), encoding="utf-8")
