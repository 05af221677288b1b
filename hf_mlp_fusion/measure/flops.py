"""Floating-point operations of a forward or of a training step."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from ..data import Batch, as_batches, evaluating, inputs_of, on_device
from .step import training_step

__all__ = ["flops"]


def flops(model: PreTrainedModel, batch: Batch, *, training: bool = False) -> int:
    """Counts the operations of matrix products and attention, a multiplication and an addition as two.

    Args:
        model: The model.
        batch: What to run it on.
        training: Count a forward and a backward.
    """
    batch = on_device(next(as_batches(model, [batch])), model)
    with evaluating(model), torch.set_grad_enabled(training), FlopCounterMode(display=False) as counter:
        if training:
            training_step(model, batch)
        else:
            model(**inputs_of(batch))
    return counter.get_total_flops()
