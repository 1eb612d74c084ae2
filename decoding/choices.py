"""What can be asked of a trained model, and what is done unless asked: for commands, page and model; no torch."""

from typing import Literal

Mode = Literal["auto", "eager", "compiled", "native"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
TargetMode = Literal["auto", "eager", "native"]
"""Of an encoder-decoder."""
WhenFull = Literal["stop", "slide"]
WHEN_FULL: WhenFull = "slide"
"""What is done with a text unless told otherwise, by the command, the page and `decoding.writing.write` alike."""
SAMPLE_LENGTH = 300
DEFAULT_TEMPERATURE = 0.8
ROWS = (100, 200, 300, 500)
"""New tokens, a row each, in the table of what the key-value cache saves."""
