"""One process of a timed all-reduce: `python -m training.doctor.rank FOLDER BACKEND RANK PROCESSES SECONDS`.

Started by `all_reduce.py`, which ends it. It says by files in the folder how far it has come.
"""

import json
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

SMALL = 1024
LARGE = {"nccl": 2**24, "gloo": 2**22}
"""Numbers of four bytes: a bucket of gradients of a small model, and about all of one with 17 million parameters."""
TIMES = 10


def main() -> None:
    """Meet the others, add numbers up, and let the first process write down how long that took."""
    folder, backend, (rank, processes, seconds) = Path(sys.argv[1]), sys.argv[2], map(int, sys.argv[3:])
    # The process that started this one ends it before, unless it was killed itself. Nothing that hangs holds this up.
    signal.alarm(seconds)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    torch.set_num_threads(1)
    large = torch.full((LARGE[backend],), rank + 1.0, device=device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.synchronize()
    (folder / f"ready-{rank}").touch()
    meeting = f"file://{folder.absolute()}/meeting"
    patience = timedelta(seconds=seconds)
    distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=processes, timeout=patience)
    distributed.all_reduce(large)
    right = bool((large == processes * (processes + 1) / 2).all())
    large.zero_()
    result = {
        "right": right,
        "bytes": large.nbytes,
        "seconds": _seconds(large),
        "latency": _seconds(torch.zeros(SMALL, device=device)),
    }
    if rank == 0:
        (folder / "result.new").write_text(json.dumps(result))
        (folder / "result.new").rename(folder / "result.json")


def _seconds(tensor: torch.Tensor) -> float:
    """Of one all-reduce, among several."""
    for times in (2, TIMES):  # The first are to warm up.
        begin = time.perf_counter()
        for _ in range(times):
            distributed.all_reduce(tensor)
        if tensor.device.type == "cuda":
            torch.cuda.synchronize()
    return (time.perf_counter() - begin) / TIMES


if __name__ == "__main__":
    main()
