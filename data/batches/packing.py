"""Documents side by side in windows, which a model takes as if each stood alone.

Shapes: B batch, T tokens, R rows.
"""

from bisect import bisect_left, insort

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def positions_of_documents(tokens_BT: Tensor, end: int) -> Tensor:
    """The position of each token in its document, from 0 on; one begins with each window, and behind each `end`."""
    index_T = torch.arange(tokens_BT.size(1), device=tokens_BT.device)
    begins_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
    begins_BT[:, 1:] = tokens_BT[:, :-1] == end
    return index_T - torch.where(begins_BT, index_T, 0).cummax(1).values


def packed(lengths_R: NDArray[np.integer], size: int) -> list[list[int]]:
    """Rows of different lengths in as few windows of `size` as come about by putting each, the longest first, where it
    leaves the least room ("best fit decreasing", Johnson 1973).

    Args:
        lengths_R: Of each row: from 1 to `size`.
        size: Of a window.

    Returns:
        The rows of each window. It depends on the lengths alone.
    """
    windows: list[list[int]] = []
    rooms: list[int] = []  # What is left in some window, each once and in rising order; and the windows of each.
    windows_with: dict[int, list[int]] = {}
    for row in np.argsort(-lengths_R.astype(np.int64), kind="stable").tolist():
        length = int(lengths_R[row])
        index = bisect_left(rooms, length)
        if index == len(rooms):
            number, room = len(windows), size
            windows.append([])
        else:
            room = rooms[index]
            number = windows_with[room].pop()
            if not windows_with[room]:
                del rooms[index]
        windows[number].append(row)
        left = room - length
        if left and not windows_with.setdefault(left, []):
            insort(rooms, left)
        if left:
            windows_with[left].append(number)
    return windows
