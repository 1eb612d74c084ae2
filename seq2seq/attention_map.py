"""A picture of where the decoder looks in the source.

Shapes: B batch, T target tokens, S source tokens, H heads.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from data.pairs.batches import frame_source
from data.tokenizers.vocabulary import START, Vocabulary
from decoding.token_text import shown_token
from layers import MultiHeadAttention
from seq2seq.model import EncoderDecoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_LABELS = 40
"""Above so many tokens their names would run into each other."""


@torch.inference_mode()
def cross_attention(model: EncoderDecoder, source: Sequence[int], target: Sequence[int]) -> list[Tensor]:
    """The weights of cross-attention while a target is written, in each layer of the decoder.

    Args:
        model: In evaluation mode.
        source: Token ids, without special tokens.
        target: Token ids of what was written, without special tokens.

    Returns:
        For each layer a tensor of shape (H, T, S): row t belongs to the choice of the target's token t, the last row to
        its end. S counts start and end of the source.
    """
    found: list[Tensor] = []
    here = threading.get_ident()

    def look(attention: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        if threading.get_ident() != here:  # Another thread runs the same model.
            return
        assert isinstance(attention, MultiHeadAttention)
        names = ("mask_BTS", "rotary", "memory_rotary")
        found.append(attention.weights(*inputs, **{name: options[name] for name in names})[0].cpu())

    crossings = [block.get_submodule("cross_attention") for block in model.decoder_blocks]
    hooks = [crossing.register_forward_pre_hook(look, with_kwargs=True) for crossing in crossings]
    try:
        device = model.embedding.weight.device
        model(*(torch.tensor([tokens], device=device) for tokens in (frame_source(source), [START, *target])))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def plot_attention(
    layers: Sequence[Tensor], source: Sequence[int], target: Sequence[int], vocabulary: Vocabulary, output: Path
) -> None:
    """Draw what `attention_figure` draws into a file, a .png, .svg or .pdf."""
    attention_figure(layers, source, target, vocabulary).savefig(output)


def attention_figure(
    layers: Sequence[Tensor], source: Sequence[int], target: Sequence[int], vocabulary: Vocabulary
) -> "Figure":
    """A picture of the weights that `cross_attention` returned, a row for each layer, a column for each head.

    Args:
        layers: The weights.
        source, target: The tokens they belong to.
        vocabulary: Their names.
    """
    from training.plots import new_figure

    heads = layers[0].size(0)
    columns, rows = ["⊢", *_labels(vocabulary, source), "⊣"], [*_labels(vocabulary, target), "⊣"]
    figure = new_figure(2.6 * heads + 0.8, (0.7 + 2.4 * max(0.3, min(3.0, len(rows) / len(columns)))) * len(layers))
    grid = figure.subplots(len(layers), heads, squeeze=False)
    for layer, weights_HTS in enumerate(layers):
        for head, axes in enumerate(grid[layer]):
            image = axes.imshow(weights_HTS[head].numpy(), vmin=0, vmax=1, cmap="viridis", aspect="auto")
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=9)
            for axis, labels in ((axes.xaxis, columns), (axes.yaxis, rows)):
                if len(labels) <= MAX_LABELS:
                    axis.set_ticks(range(len(labels)), labels, fontsize=6, parse_math=False)
            if head == 0:
                axes.set_ylabel("target", fontsize=8)
            if layer == len(layers) - 1:
                axes.set_xlabel("source", fontsize=8)
    figure.colorbar(image, ax=grid, shrink=0.6, label="weight")
    return figure


def _labels(vocabulary: Vocabulary, tokens: Sequence[int]) -> list[str]:
    """Tokens by name, with spaces and line breaks that can be seen."""
    names = [shown_token(vocabulary, token).replace(" ", "␣") for token in tokens]
    return [name if name.isprintable() else ascii(name)[1:-1] for name in names]
