"""The model beside this file, with torch alone: `translate(SOURCE)` is the target, `write(TOKENS)` its tokens."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

C = json.loads(Path(__file__).with_name("config.json").read_text("utf-8"))
FILE = Path(__file__).with_name("model.safetensors").read_bytes()
START, END, SPECIAL, BEGIN = 1, 2, 3, 8 + int.from_bytes(FILE[:8], "little")
W = {  # All weights, and tables of positions: one that the model does not have changes nothing.
    name: torch.frombuffer(bytearray(FILE[BEGIN:][slice(*e["data_offsets"])]), dtype=torch.float32).view(e["shape"])
    for name, e in json.loads(FILE[8:BEGIN]).items()
}


def layer(x: Tensor, name: str) -> Tensor:  # A product with a matrix, or a norm.
    w, b = W[f"{name}.weight"], W.get(f"{name}.bias")
    if w.ndim == 2:
        return F.linear(x, w, b)
    return F.rms_norm(x, w.shape, w, C["norm_eps"]) if b is None else F.layer_norm(x, w.shape, w, b, C["norm_eps"])


def attention(x: Tensor, name: str, at: Tensor, memory: Tensor | None, seen: Tensor, causal: bool) -> Tensor:
    normed, heads = layer(x, f"{name}_norm"), dict[str, Tensor]()
    memory = normed if memory is None else memory
    for part, y, positions in (("query", normed, at), ("key", memory, seen), ("value", memory, 0 * seen)):
        y = layer(y, f"{name}.{part}").view(len(y), -1, C["head_size"]).transpose(0, 1)
        y = layer(y, f"{name}.{part}_norm") if f"{name}.{part}_norm.weight" in W else y
        heads[part] = (y * W["cos"][positions] + y.roll(C["head_size"] // 2, -1) * W["sin"][positions])[None]
    y = F.scaled_dot_product_attention(**heads, is_causal=causal, enable_gqa=True)[0]  # type: ignore[arg-type]
    return x + layer(y.transpose(0, 1).flatten(1), f"{name}.out")


def run(tokens: list[int], part: str, memory: Tensor | None = None) -> Tensor:
    x, at = W["embedding"][tokens] + W["positions"][: len(tokens)], torch.arange(len(tokens))
    for block in (f"{part}_blocks.{n}" for n in range(C["num_layers"])):
        x = attention(x, f"{block}.attention", at, None, at, memory is not None)
        if memory is not None:  # Each of its heads counts the source from the start or from the end.
            seen = (torch.arange(len(memory)) - torch.tensor(C["from_end"])[:, None] * (len(memory) - 1)).abs()
            x = attention(x, f"{block}.cross_attention", C["crossing"] * at, memory, C["crossing"] * seen, False)
        up = layer(y := layer(x, f"{block}.feed_forward_norm"), f"{block}.feed_forward.up")
        up = F.gelu(up, approximate=C["gelu"]) if C["gelu"] else up * F.silu(layer(y, f"{block}.feed_forward.gate"))
        x = x + layer(up, f"{block}.feed_forward.down")
    return layer(x, f"{part}_norm")


def write(source: list[int]) -> list[int]:
    memory, tokens = run([START, *(SPECIAL + n for n in source), END], "encoder"), [START]
    while tokens[-1] != END and len(tokens) <= C["max_len"]:  # Neither padding nor a start is written.
        tokens.append(END + int(layer(run(tokens, "decoder", memory)[-1], "head")[END:].argmax()))
    return [token - SPECIAL for token in tokens[1:] if token != END]


def translate(source: str) -> str:
    text = source.encode().decode(C["encoding"])
    tokens = write([C["symbols"].index(symbol) for symbol in (text.split() if C["separator"] else text)])
    return C["separator"].join(C["symbols"][n] for n in tokens).encode(C["encoding"]).decode(errors="replace")
