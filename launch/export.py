"""Hand a model to other tools: `python launch/export.py --checkpoint DIR --format transformers --output DIR`.

A GPT becomes a folder that transformers loads, or a GGUF file; an encoder-decoder a folder with a loader of its own.
"""

import re
import sys
from pathlib import Path

from decoding.model_type import checkpoint_model_type
from training.config.command_line import Namespace, StrictParser
from training.publishing.folder import check_new_folder
from training.publishing.hub import check_push, push
from training.runtime.errors import InputError, exit_code

FORMATS = {"transformers": "gpt", "gguf": "gpt", "safetensors": "seq2seq"}
NAMES = {"gpt": "a GPT", "seq2seq": "an encoder-decoder"}
GGUF_TYPES = ("F32", "F16", "Q8_0")


def parse() -> Namespace:
    """The options, and the `model_type`.

    Raises:
        InputError: One has a bad value, or does not go with another.
    """
    parser = StrictParser(
        prog="export.py",
        description="Hand a trained model to other tools: a GPT to transformers or, as GGUF, to llama.cpp; an "
        "encoder-decoder to whoever has torch. A model card goes with it.",
    )
    add = parser.add_argument
    add("--checkpoint", type=str, required=True, help="A run (its best checkpoint) or one checkpoint.")
    add(
        "--format",
        choices=list(FORMATS),
        required=True,
        help="Of a GPT transformers, a folder that AutoModelForCausalLM and AutoTokenizer load, or gguf; of an "
        "encoder-decoder safetensors, with a loader that needs torch alone.",
    )
    add("--output", type=str, required=True, help="The folder to make; nothing is overwritten.")
    weights = "The average of the weights, or themselves. Default: ema where there is one."
    add("--weights", choices=["ema", "raw"], help=weights)
    add("--dtype", choices=["fp32", "bf16", "fp16"], default="fp32", help="Of the weights in transformers.")
    add(
        "--trust_code",
        action="store_true",
        help="Import the class that made the model, where the run names one of one's own: that runs its code.",
    )
    add("--gguf_type", choices=list(GGUF_TYPES), default="F32", help="Of the weights in gguf.")
    add("--license", type=str, help="The hub's word for the model's licence, such as mit, for the model card.")
    add("--push_to_hub", type=str, metavar="OWNER/NAME", help="Then upload the folder to this model of the hub.")
    add("--private", action="store_true", help="Of a model that --push_to_hub makes: for its owner alone.")
    options = parser.parse_args()
    _check(options)
    return options


def _check(options: Namespace) -> None:
    if options.format != "transformers" and options.dtype != "fp32":
        raise InputError("--dtype is for --format transformers; --format gguf has --gguf_type")
    if options.format != "gguf" and options.gguf_type != "F32":
        raise InputError("--gguf_type is for --format gguf")
    if options.private and options.push_to_hub is None:
        raise InputError("--private is for --push_to_hub")
    if options.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", options.license):
        raise InputError(f"license must be the hub's word for one, such as mit or apache-2.0, got {options.license}")
    check_new_folder(Path(options.output))
    if options.push_to_hub is not None:
        check_push(options.push_to_hub)
    options.model_type = checkpoint_model_type(Path(options.checkpoint)) or FORMATS[options.format]
    if FORMATS[options.format] != options.model_type:
        fitting = " or ".join(name for name, model_type in FORMATS.items() if model_type == options.model_type)
        raise InputError(
            f"{options.checkpoint} is {NAMES[options.model_type]}, which --format {options.format} is not for: "
            f"expected {fitting}"
        )


def main() -> None:
    """Parse, and only then load torch and what the model's package does with the options."""
    options = parse()
    if options.model_type == "gpt":
        from gpt.export import export
    else:
        from seq2seq.export import export
    export(options)
    print(options.output)
    if options.push_to_hub is not None:
        print(push(Path(options.output), options.push_to_hub, private=options.private))


if __name__ == "__main__":
    sys.exit(exit_code(main))
