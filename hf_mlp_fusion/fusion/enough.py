"""How many rows and tokens a calibration takes of data that have more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from ..data import Batch, row_count

__all__ = ["HELD_OUT", "LENGTH", "ROWS", "SAMPLES", "TOKENS", "enough_rows", "token_count"]

T = TypeVar("T")

SAMPLES = 512
"""Rows of tokens (sentences, or windows for language models) that a calibration on texts uses, at least."""

LENGTH = 128
"""Tokens of a window, and of a row at most."""

TOKENS = LENGTH * SAMPLES
"""Tokens that it uses, at least: so many more sentences where they are short. From few, units are chosen badly."""

HELD_OUT = 32
"""Rows beside them, by which the error is told."""

ROWS = SAMPLES + HELD_OUT
"""Both together."""


def enough_rows(items: Iterable[T], size: Callable[[T], tuple[int, int]]) -> list[T]:
    """Takes items until there are as many rows and as many tokens as a calibration uses, and those held out.

    Args:
        items: Texts, rows, or batches; there may be no end of them.
        size: The rows and the tokens of one.
    """
    chosen: list[T] = []
    rows = tokens = 0
    for item in items:
        chosen.append(item)
        more = size(item)
        rows, tokens = rows + more[0], tokens + more[1]
        if rows >= ROWS and tokens >= LENGTH * ROWS:
            break
    return chosen


def token_count(batch: Batch) -> int:
    """Tokens of a batch that are no padding, where that is known, else its rows.

    Args:
        batch: The batch.
    """
    mask = batch.get("attention_mask")
    if mask is not None and mask.dim() == 2:
        return int(mask.bool().sum())
    ids = batch.get("input_ids")
    return row_count(batch) if ids is None else ids.numel()
