"""What `launch/export.py` does with a GPT: a folder that transformers loads, or a file for llama.cpp."""

from pathlib import Path
from typing import Any

import torch

from data.config import TINY_SHAKESPEARE, TextConfig
from data.tokenizers.chat import TEMPLATE
from data.tokenizers.library_tokenizer import end_of_text_name, library_tokenizer
from data.tokenizers.tokenizer import unit_of
from gpt.formats.transformers_form import check_form, form_config, form_weights
from gpt.task import LoadedGPT, load_gpt
from training.config.command_line import Namespace
from training.publishing.folder import new_folder, write_json
from training.publishing.model_card import Card, card_file, model_rows, name_alone
from training.publishing.numbers import run_figures
from training.runtime.errors import InputError
from training.storage.finding import find_checkpoint, open_checkpoint
from training.storage.tensor_file import file_order, write_tensors

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
USAGE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {name!r}
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer({prompt!r}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens={length})[0]))
```"""
GGUF_USAGE = "It is a file for llama.cpp: `llama-completion -m {file} -p TEXT -n {length}`, or whatever reads GGUF."


def export(options: Namespace) -> None:
    """Write the folder that the options of `launch/export.py` ask for."""
    # Of one that still trains, another checkpoint may be the best one by the time that the card is written.
    checkpoint = find_checkpoint(Path(options.checkpoint)).resolve()
    loaded = load_gpt(checkpoint, weights=options.weights, trust_code=options.trust_code)
    output = Path(options.output)
    name = options.push_to_hub or output.resolve().name
    length = max(loaded.config.model.max_len - 16, 1)
    with new_folder(output) as folder:
        if options.format == "gguf":
            from gpt.formats.gguf import write_gguf

            file = folder / f"{output.resolve().name}-{options.gguf_type}.gguf"
            write_gguf(loaded, file, options.gguf_type)
            usage, library = GGUF_USAGE.format(file=file.name, length=length), "gguf"
        else:
            write_transformers(loaded, folder, DTYPES[options.dtype])
            prompt = loaded.tokenizer.decode([0]) if unit_of(loaded.tokenizer) == "character" else "The "
            usage, library = USAGE.format(name=name, prompt=prompt, length=length), "transformers"
        card_file(folder, model_card(loaded, checkpoint, name, usage, library, options.license))


def write_transformers(loaded: LoadedGPT, folder: Path, dtype: torch.dtype) -> None:
    """Write model and tokenizer in the files that `AutoModelForCausalLM` and `AutoTokenizer` load.

    Args:
        loaded: Model and tokenizer.
        folder: Where the files go.
        dtype: Of the weights.

    Raises:
        InputError: transformers has no such model.
        OSError: The disk refuses.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    check_form(model)
    config = form_config(model, tokenizer.end_of_text, dtype)
    end = {} if tokenizer.end_of_text is None else {"eos_token_id": tokenizer.end_of_text}
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", end | ({"pad_token_id": tokenizer.end_of_text} if end else {}))
    write_json(folder / "tokenizer.json", library_tokenizer(tokenizer))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(loaded))
    if loaded.chat is not None:
        (folder / TEMPLATE).write_text(loaded.chat.template, encoding="utf-8")
    weights = {name: _rounded(name, tensor, dtype) for name, tensor in form_weights(model).items()}
    values = (weights[name].cpu() for name in file_order(weights))
    write_tensors(folder / "model.safetensors", weights, values, {"format": "pt"})


def _rounded(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    rounded = tensor.to(dtype).contiguous()
    if dtype != tensor.dtype and not rounded.isfinite().all():
        largest = tensor.abs().max().item()
        raise InputError(f"{name} has the weight {largest:g}, too large for {str(dtype)[6:]}: use --dtype fp32")
    return rounded


def _tokenizer_config(loaded: LoadedGPT) -> dict[str, Any]:
    """What transformers must know of a tokenizer so that it does as ours does."""
    end = end_of_text_name(loaded.tokenizer)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": loaded.config.model.max_len,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        # What is called like a special token is text, in a text; what a chat template writes is such tokens.
        "split_special_tokens": loaded.chat is None,
        **({} if loaded.chat is None else loaded.chat.special),
        **({} if end is None else {"eos_token": end}),
    }


def model_card(loaded: LoadedGPT, checkpoint: Path, name: str, usage: str, library: str, licence: str | None) -> Card:
    """What the card of an exported GPT says."""
    config, data = loaded.config, loaded.config.data
    began = "trained from scratch" if config.init_from is None else f"which began as {_origin(config.init_from)}"
    kind = "characters" if unit_of(loaded.tokenizer) == "character" else name_alone(data.tokenizer)
    return Card(
        name=name,
        about=f"A decoder-only transformer that continues text, {began}.",
        usage=usage,
        front={"library_name": library, "pipeline_tag": "text-generation", "tags": ["text-generation"]},
        shape=model_rows(loaded, f"{config.model.num_layers}", kind),
        data={"text": _shown_source(data), "SHA-256": loaded.data_sha256},
        datasets=_datasets(data),
        licence=licence,
        config=config,
        figures=run_figures(open_checkpoint(checkpoint, in_part=True), loaded.weights),
    )


def _origin(init_from: str) -> str:
    """What weights are called that a model began with: a folder, or of a run also which checkpoint."""
    path = Path(init_from)
    return f"{path.parents[1].name}, {path.name}" if path.parent.name == "checkpoints" else path.name


def _shown_source(data: TextConfig) -> str:
    sources = (data.mix or data.source).split(",")
    return "Tiny Shakespeare" if sources in (["auto"], ["hub"]) else ", ".join(map(name_alone, sources))


def _datasets(data: TextConfig) -> tuple[str, ...]:
    """What the text is called on the hub, as far as it is there."""
    parts = data.parts.values() or (data,)
    names = (TINY_SHAKESPEARE if part.source == "auto" else part.hub_name for part in parts)
    return tuple(name for name in names if name is not None)
