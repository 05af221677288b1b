"""Widths of several FFNs under one budget, from the error curves of a backward elimination."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["allocate_widths"]


def allocate_widths(
    rises: Sequence[Tensor], full: Sequence[int], budget: int, step: int, counts: Sequence[int] | None = None
) -> list[int]:
    """Greedy knapsack: starting from the narrowest, `step` units at a time go where they lower the error most.

    Args:
        rises: Of each FFN the rise of its squared error after 0, 1, ... drops (`eliminate`), in one unit. The last
            entry belongs to the narrowest width that the FFN may have.
        full: Of each FFN the full width.
        budget: Hidden units of all FFNs together.
        step: Units that are given at a time.
        counts: Of each how many FFNs it stands for, which get one width (the experts of a stack; `rises` are their
            sums); one each if not given.

    Returns:
        Of each FFN the width. They sum to at most `budget`, less than `step` units (of each of the FFNs that
        one stands for) of it unused unless all are full.
        No FFN falls below its narrowest width, even where the budget is smaller than that.
    """
    widths = [units - len(rise) + 1 for units, rise in zip(full, rises, strict=True)]
    counts = counts or [1] * len(full)
    left = budget - sum(width * count for width, count in zip(widths, counts, strict=True))

    def gain(index: int) -> float:
        """Fall of the error a unit that the next step of this FFN brings."""
        drops = full[index] - widths[index]
        given = min(step, drops)
        if not 0 < given * counts[index] <= left:
            return -1.0
        return float(rises[index][drops] - rises[index][drops - given]) / (given * counts[index])

    while True:
        gains = [gain(index) for index in range(len(full))]
        best = int(torch.tensor(gains).argmax())
        if gains[best] < 0:
            return widths
        given = min(step, full[best] - widths[best])
        widths[best] += given
        left -= given * counts[best]
