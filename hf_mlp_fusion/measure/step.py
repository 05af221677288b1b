"""A training step of any model, to be timed and weighed."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ..data import Batch
from .scalars import scalar_outputs

__all__ = ["training_step"]


def training_step(model: PreTrainedModel, batch: Batch, optimizer: torch.optim.Optimizer | None = None) -> None:
    """One forward and backward of a model in its present mode, and a step of the optimizer where one is given.

    Args:
        model: The model.
        batch: The batch.
        optimizer: Steps after the backward. Gradients are dropped at the end.
    """
    scalar_outputs(model)(model, batch).mean().backward()
    if optimizer is not None:
        optimizer.step()
    model.zero_grad(set_to_none=True)
