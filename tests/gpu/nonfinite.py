"""Sampling and losses of models whose weights are NaN or inf, on a GPU: each case must end in a NonFiniteError.

    PYTHONPATH=. python tests/gpu/nonfinite.py [--device cuda] [--json FILE] [--quick]

Half a minute on an H100, most of it for compiling, which --quick leaves out. Prints a line a case, and exits with 1
where one did not end in the one error. An assertion of the device would break every case after it, so each ends with a
product on the device.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator

from data.tokenizers.characters import CharTokenizer
from decoding.decoder import Decoder, convert
from decoding.generation import search
from decoding.sampling import Sampler, Sampling, seen_tokens
from decoding.targets import decode
from decoding.targets import search as search_pairs
from decoding.writing import write
from gpt.baselines import variants
from gpt.config import ModelConfig
from gpt.model import GPT
from layers import KVCache
from seq2seq.config import ModelConfig as PairConfig
from seq2seq.model import EncoderDecoder
from training.evaluation import mean_loss
from training.runtime.errors import NonFiniteError, require_finite
from training.task import Batch

parser = argparse.ArgumentParser()
parser.add_argument("--device", default="cuda")
parser.add_argument("--json", default="nonfinite_gpu.json")
parser.add_argument("--quick", action="store_true", help="eager only")
options = parser.parse_args()
DEVICE = torch.device(options.device)
TOKENIZER = CharTokenizer("\n abcdefghijklmnopqrstuvwxyz.,;:!?'-ABCDEFGHIJKLMNOPQRSTUVWXYZ3&$"[:65])
CASES, FAILED = [], []


def sync() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def fresh_gpt() -> GPT:
    model = GPT(ModelConfig(num_layers=2, d_model=128, num_heads=4, d_ff=256, max_len=64), len(TOKENIZER))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.05, generator=generator).add_(0.01)
    return model.to(DEVICE).eval()


def fresh_pairs() -> EncoderDecoder:
    model = EncoderDecoder(PairConfig(num_layers=2, d_model=64, num_heads=4, d_ff=96, max_len=32), 20)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.05, generator=generator).add_(0.01)
    return model.to(DEVICE).eval()


def poison(model: Any, kind: str) -> Any:
    """nan and inf: one weight of the last norm; all: every weight NaN; large: finite in fp32, inf in fp16."""
    with torch.no_grad():
        norms = [p for name, p in model.named_parameters() if "norm" in name]
        if kind == "all":
            for parameter in model.parameters():
                parameter.fill_(float("nan"))
        elif kind == "large":
            for name, parameter in model.named_parameters():
                if "norm" not in name:
                    parameter.mul_(1e30)
        else:
            norms[-1][3] = float(kind)
    return model


def case(name: str, what: Callable[[], Any]) -> None:
    """Run one case, which must end in a NonFiniteError, and prove that the device still computes."""
    start = time.perf_counter()
    try:
        what()
        sync()
        outcome = "NO ERROR"
    except NonFiniteError as error:
        outcome = "ok" if "is not a finite number" in str(error) else f"other words: {error}"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    try:
        sync()
        assert float((torch.ones(64, 64, device=DEVICE) @ torch.ones(64, 64, device=DEVICE)).sum()) == 64.0**3
    except BaseException as error:
        outcome += f"; DEVICE BROKEN: {type(error).__name__} {str(error).splitlines()[0]}"
    seconds = time.perf_counter() - start
    CASES.append({"case": name, "outcome": outcome, "seconds": round(seconds, 3)})
    if outcome != "ok":
        FAILED.append(name)
    print(f"{'ok  ' if outcome == 'ok' else 'FAIL'} {name}: {outcome} ({seconds:.2f} s)", flush=True)


def written(decoder: Decoder, **asked: Any) -> Callable[[], Any]:
    return lambda: list(write(decoder, TOKENIZER, "abc", max_new_tokens=90, when_full="slide", **asked))


WAYS = {
    "temperature 0.8": {"sampling": Sampling(temperature=0.8)},
    "temperature 0": {"sampling": Sampling(temperature=0)},
    "top-k, top-p, min-p, penalty": {
        "sampling": Sampling(temperature=0.8, top_k=9, top_p=0.9, min_p=0.05, repetition_penalty=1.2)
    },
    "4 texts, 3 alternatives": {"sampling": Sampling(temperature=0.8), "num_samples": 4, "alternatives": 3},
    "lookup": {"sampling": Sampling(temperature=0), "lookup": 8},
}
modes = ["eager"] if options.quick else ["eager", "compiled"]
for mode in modes:
    for precision in ("fp32", "bf16", "fp16", "int8"):
        kinds = ["nan", "inf", "all", *(["large"] if precision == "fp16" else [])] if mode == "eager" else ["nan"]
        for kind in kinds:
            decoder = Decoder(convert(poison(fresh_gpt(), kind), precision), mode)
            for way, asked in WAYS.items():
                if mode == "compiled" and way == "4 texts, 3 alternatives":
                    continue  # A graph of its own for 4: seconds of compiling more.
                case(f"gpt {mode} {precision} {kind}: {way}", written(decoder, **asked))
            if mode == "eager":
                case(
                    f"gpt {mode} {precision} {kind}: beams",
                    lambda d=decoder: search(d, [1, 2, 3], width=4, max_new_tokens=20),
                )

# A text that is sound at first: the numbers turn bad in the middle, and in one of several texts.
sound = Decoder(fresh_gpt(), "eager")
read, count = sound.decode_step, [0]


def turning(tokens_BT: torch.Tensor, cache: KVCache) -> torch.Tensor:
    count[0] += 1
    logits = read(tokens_BT, cache)
    return logits.index_fill(0, torch.tensor([1], device=DEVICE), float("nan")) if count[0] == 10 else logits


sound.decode_step = turning
case("gpt eager fp32: one of 3 texts turns NaN at its 10th token", written(sound, num_samples=3))

sources = [[5, 6, 7], [8], [9, 10]]
for kind in ("nan", "inf", "all"):
    pairs = poison(fresh_pairs(), kind)
    case(f"pairs eager {kind}: greedy", lambda m=pairs: decode(m, sources))
    case(f"pairs eager {kind}: temperature 0.8", lambda m=pairs: decode(m, sources, sampling=Sampling(temperature=0.8)))
    case(f"pairs eager {kind}: without cache", lambda m=pairs: decode(m, sources, use_cache=False))
    case(f"pairs eager {kind}: beams", lambda m=pairs: search_pairs(m, [5, 6, 7], width=4))

for kind in ("nan", "inf"):
    model = poison(fresh_gpt(), kind)

    for variant in variants([("fp32", Decoder(model, "eager"))], [1], ["eager"]):
        case(f"benchmark of {variant.name} {kind}", lambda v=variant: list(v.write([[1, 2]], 12)))

    def measured(m: GPT = model) -> None:
        accelerator = Accelerator()
        tokens = torch.randint(0, len(TOKENIZER), (4, 64))
        targets = torch.randint(0, len(TOKENIZER), (4, 64))
        batches = [Batch((tokens,), targets)]
        require_finite([mean_loss(accelerator, m.to(accelerator.device), batches)], "the loss")

    case(f"validation loss {kind}", measured)

# What a step of the sampler costs, and that seeded tokens are the same with and without sync.
costs = {}
for name, sampling in (("temperature 0.8", Sampling(temperature=0.8)), ("greedy", Sampling(temperature=0))):
    logits = torch.randn(1, len(TOKENIZER), device=DEVICE)
    noise = torch.rand(256, dtype=torch.float64)
    sampler = Sampler(sampling, lambda row, block, noise=noise: noise, seen_tokens([[]], len(TOKENIZER), DEVICE))
    for _ in range(200):
        sampler.choose(logits)
    sync()
    rounds = []
    for _ in range(9):
        start = time.perf_counter()
        for _ in range(200):
            sampler.choose(logits).tokens_B.tolist()
        rounds.append((time.perf_counter() - start) / 200)
    costs[f"sampler, {name}, microseconds a token"] = round(1e6 * sorted(rounds)[4], 2)
clean = Decoder(fresh_gpt(), "eager")
text = "".join(piece.text for piece in write(clean, TOKENIZER, "abc", max_new_tokens=60, seed=5))
costs["a sound model's text, 60 characters from seed 5"] = text
for name, value in costs.items():
    print(f"{name}: {value!r}")
result = {
    "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
    "torch": torch.__version__,
    "cases": CASES,
    "costs": costs,
    "failed": FAILED,
}
with open(options.json, "w") as file:
    json.dump(result, file, indent=1)
print(f"{len(CASES) - len(FAILED)} of {len(CASES)} cases end in the one error")
sys.exit(bool(FAILED))
