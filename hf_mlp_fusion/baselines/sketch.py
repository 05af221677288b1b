"""Gaussian sketching of the hidden axis."""

from __future__ import annotations

import torch
from torch import Tensor

from ..recipe import FusionConfig
from ..tensors import FFNWeights
from .each import each_ffn

__all__ = ["SKETCH", "sketch_units"]


def sketch_units(weights: FFNWeights, sketch: Tensor) -> FFNWeights:
    """Replaces the hidden units by random mixtures of them: W1~ = Sᵀ W1, b1~ = Sᵀ b1, W2~ = W2 S.

    Args:
        weights: The FFN of I units.
        sketch: S, `[I, k]`, with E[S Sᵀ] = 1, so that the mean of W2~ W1~ is W2 W1.

    Returns:
        The FFN of k units.
    """

    def mixed(rows: Tensor | None) -> Tensor | None:
        return None if rows is None else (sketch.T @ rows.double()).to(rows)

    up = mixed(weights.up)
    assert up is not None
    return FFNWeights(
        up,
        (weights.down.double() @ sketch).to(weights.down),
        mixed(weights.up_bias),
        mixed(weights.gate),
        mixed(weights.gate_bias),
        None if weights.down_bias is None else weights.down_bias.clone(),
    )


def _sketch(weights: FFNWeights, width: int, config: FusionConfig) -> FFNWeights:
    generator = torch.Generator().manual_seed(config.seed)
    gaussian = torch.randn(weights.width, width, generator=generator, dtype=torch.float64) / width**0.5
    return sketch_units(weights, gaussian.to(weights.up.device))


SKETCH = each_ffn("sketch", "narrow", _sketch)
"""A Gaussian S / √k, seeded by the recipe."""
