"""Our GPT as a model of Hugging Face transformers, for whoever wants its tools, or wants to compare.

`gpt.formats.transformers_form` says which one it is. The two differ by rounding alone: with 6 layers in fp32, over
2,048 tokens, by less than 1e-6 of the largest logit.
"""

from typing import TYPE_CHECKING, Any

import torch

from gpt.formats.transformers_form import check_form, form_config, form_weights
from gpt.model import GPT
from training.runtime.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def to_transformers(model: GPT, end_of_text: int | None = None) -> "PreTrainedModel":
    """Copy a GPT into the model of transformers that computes the same logits.

    Args:
        model: In a form that transformers has; it is left as it is.
        end_of_text: The token that ends what it generates; None for nothing but a length.

    Returns:
        A `LlamaForCausalLM`, `Qwen3ForCausalLM` or `GPT2LMHeadModel`: in evaluation mode, on the device and in the
        dtype of `model`, without other special tokens.

    Raises:
        InputError: transformers is not installed or has no equivalent of the model.
    """
    check_form(model)
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise InputError("this needs the package transformers: pip install transformers") from error
    weight = model.embedding.weight
    config = AutoConfig.for_model(**form_config(model, end_of_text, weight.dtype))
    # It is built with weights drawn at random, which are then replaced: no draw of ours may move by that.
    with torch.random.fork_rng(devices=[]):
        models: Any = AutoModelForCausalLM
        theirs = models.from_config(config, dtype=weight.dtype, attn_implementation="sdpa")
    weights = {name: tensor.clone() for name, tensor in form_weights(model).items()}
    missing, unknown = theirs.load_state_dict(weights, strict=False, assign=True)
    assert set(missing) <= {"lm_head.weight"}, missing  # Which is the embedding, where it is tied.
    assert not unknown, unknown
    theirs.tie_weights()
    return theirs.to(weight.device).eval()
