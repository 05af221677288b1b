"""Units fitted to the originals' distribution by maximum mean discrepancy (Gretton et al. 2012)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..recipe import FusionConfig
from ..tensors import FFNWeights
from .each import each_ffn

__all__ = ["MMD", "discrepancy", "fit_units"]

_STEPS, _LEARNING_RATE = 100, 1e-2  # the paper's
_BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the five Gaussian kernels, relative to the mean squared distance


def discrepancy(units: Tensor, originals: Tensor, bandwidth: float) -> Tensor:
    """Squared MMD between two sets of vectors under a sum of five Gaussian kernels, up to what `units` do not change.

    Args:
        units: `[k, f]`.
        originals: `[n, f]`.
        bandwidth: Mean squared distance of the originals.
    """

    def kernel(left: Tensor, right: Tensor) -> Tensor:
        squares = left.square().sum(dim=1)[:, None] + right.square().sum(dim=1) - 2 * left @ right.T
        return sum((-squares.clamp(min=0) / (bandwidth * scale)).exp().mean() for scale in _BANDWIDTHS)  # type: ignore[return-value]

    return kernel(units, units) - 2 * kernel(units, originals)


def fit_units(features: Tensor, width: int, seed: int) -> Tensor:
    """Fits k vectors to the distribution of n, starting from k of them.

    Args:
        features: `[n, f]`.
        width: k.
        seed: Which vectors to start from.

    Returns:
        `[k, f]`; with k = n a permutation of the features.
    """
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:width]
    if width == len(features):
        return features[chosen]
    centred = features - features.mean(dim=0)
    bandwidth = 2 * len(features) / (len(features) - 1) * centred.square().sum(dim=1).mean().item()
    with torch.enable_grad():
        units = features[chosen].clone().requires_grad_()
        optimizer = torch.optim.AdamW([units], lr=_LEARNING_RATE, weight_decay=0.0)
        for _ in range(_STEPS):
            optimizer.zero_grad()
            discrepancy(units, features, bandwidth).backward()
            optimizer.step()
    return units.detach()


def _mmd(weights: FFNWeights, width: int, config: FusionConfig) -> FFNWeights:
    units = fit_units(weights.features(), width, config.seed)
    fitted = weights.with_units(units)
    # k units stand for I: sums over them become as large by the factor I / k. The output bias is no unit's.
    return replace(fitted, down=fitted.down * (weights.width / width))


MMD = each_ffn("mmd", "narrow", _mmd)
"""k vectors fitted by 100 AdamW steps, their outputs scaled by I / k."""
