"""Truncated singular value decomposition of each projection."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import FusionConfigError
from ..modeling.forms import LowRankWeights
from ..recipe import FusionConfig
from ..tensors import FFNWeights
from .each import each_ffn

__all__ = ["SVD", "equal_rank", "low_rank_factors"]


def low_rank_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of a matrix by one of lower rank (Eckart and Young 1936).

    Args:
        weight: `[m, n]`.
        rank: r, 1 to min(m, n).

    Returns:
        A `[r, n]` and B `[m, r]` with B A ≈ weight, each holding the square roots of the singular values, in the
        weight's dtype and on its device.
    """
    left, values, right = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    root = values[:rank].sqrt()
    return (root[:, None] * right[:rank]).to(weight), (left[:, :rank] * root).to(weight)


def equal_rank(weights: FFNWeights, width: int) -> int:
    """The largest rank at which an FFN of low rank has no more parameters than one of fewer units.

    Args:
        weights: The FFN of I units.
        width: Units of the FFN to compare with, k.

    Returns:
        The rank of each projection (153 for RoBERTa-base and 768 units), 0 where even rank 1 is too large.
    """
    matrices = [part for part in (weights.up, weights.gate, weights.down) if part is not None]
    biases = sum(bias.numel() for bias in (weights.up_bias, weights.gate_bias) if bias is not None)
    return (width * weights.unit_size - biases) // sum(sum(matrix.shape) for matrix in matrices)


def _svd(weights: FFNWeights, width: int, config: FusionConfig) -> LowRankWeights:
    rank = equal_rank(weights, width)
    if rank < 1:
        raise FusionConfigError(
            f"svd: {width} units hold fewer parameters than projections of rank 1 do; keep more units"
        )
    parts = {
        "up": (weights.up, weights.up_bias),
        "gate": (weights.gate, weights.gate_bias),
        "down": (weights.down, weights.down_bias),
    }
    return LowRankWeights(
        {
            name: (*low_rank_factors(weight, min(rank, *weight.shape)), None if bias is None else bias.clone())
            for name, (weight, bias) in parts.items()
            if weight is not None
        }
    )


SVD = each_ffn("svd", "low_rank", _svd)
"""Each projection cut to the rank with equal parameters."""
