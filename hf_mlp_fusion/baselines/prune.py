"""Structured magnitude pruning: whole units, so that kept rows and columns match."""

from __future__ import annotations

import torch

from ..recipe import FusionConfig
from ..tensors import FFNWeights
from .each import each_ffn

__all__ = ["PRUNE", "largest", "unit_magnitudes"]


def unit_magnitudes(weights: FFNWeights) -> torch.Tensor:
    """The norm of each sub-MLP v_i, `[I]`."""
    return weights.features().norm(dim=1)


def largest(scores: torch.Tensor, width: int) -> torch.Tensor:
    """Indices of the `width` largest scores in ascending order; of equal ones the first."""
    return scores.cpu().argsort(descending=True, stable=True)[:width].sort().values


def _prune(weights: FFNWeights, width: int, config: FusionConfig) -> FFNWeights:
    return weights.picked(largest(unit_magnitudes(weights), width).numpy())


PRUNE = each_ffn("prune", "narrow", _prune)
"""The units of the largest norm."""
