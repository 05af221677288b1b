"""Floating-point operations of a forward or of a training step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel
from transformers.integrations import moe  # noqa: F401 (defines operations)

from ..data import Batch, as_batches, evaluating, inputs_of, on_device
from .step import training_step

__all__ = ["flops"]


def _grouped(rows: Sequence[int], weights: Sequence[int], *_: Any, **__: Any) -> int:
    """Operations of a product of each row with the matrix of its group, or of that matrix's gradient."""
    return 2 * math.prod(rows) * weights[-1]


# Of what stacks of experts run, which torch does not count.
_COUNTED = {
    torch.ops.aten._grouped_mm: _grouped,
    torch.ops.transformers.grouped_mm_fallback: _grouped,
}


def flops(model: PreTrainedModel, batch: Batch, *, training: bool = False) -> int:
    """Counts the operations of matrix products and attention, a multiplication and an addition as two.

    Args:
        model: The model.
        batch: What to run it on.
        training: Count a forward and a backward.
    """
    batch = on_device(next(as_batches(model, [batch])), model)
    counter = FlopCounterMode(display=False, custom_mapping=_COUNTED)
    with evaluating(model), torch.set_grad_enabled(training), counter:
        if training:
            training_step(model, batch)
        else:
            model(**inputs_of(batch))
    return counter.get_total_flops()
