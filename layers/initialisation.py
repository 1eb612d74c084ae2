"""The weights that a new model starts from."""

import torch
from torch import nn

from layers.attention import MultiHeadAttention
from layers.feed_forward import SwiGLU
from layers.norm import RMSNorm
from layers.positions import LearnedPositions


@torch.no_grad()
def init_weights(
    model: nn.Module, *, embedding: nn.Embedding, head: nn.Linear | None, generator: torch.Generator | None = None
) -> None:
    """Draw all weights of a model anew, on the CPU.

    - Embeddings: normal, deviation 1 / sqrt(M). Models multiply them by sqrt(M) (Vaswani et al. 2017, section 3.4), so
      that tokens enter with size 1, next to positions of the same size. Learned positions: deviation 0.02.
    - Matrices inside blocks: normal, deviation 1 / sqrt(inputs), which keeps the size of what passes through.
    - Matrices that write to the residual stream: zero, so that every block starts as the identity.
    - Head: zero when it has its own weights: the first loss is then ln V exactly.
    - Norms: one.

    Args:
        model: The model.
        embedding: Its embedding of tokens, of model size M.
        head: What makes logits; None where that is the embedding.
        generator: Source of the random numbers.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(0.0, module.in_features**-0.5, generator=generator)
        elif isinstance(module, RMSNorm):
            module.weight.fill_(1.0)
    embedding.weight.normal_(0.0, embedding.embedding_dim**-0.5, generator=generator)
    for module in model.modules():
        if isinstance(module, LearnedPositions):
            module.embedding.weight.normal_(0.0, 0.02, generator=generator)
        elif isinstance(module, MultiHeadAttention):
            module.out.weight.zero_()
        elif isinstance(module, SwiGLU):
            module.down.weight.zero_()
    if head is not None:
        head.weight.zero_()
