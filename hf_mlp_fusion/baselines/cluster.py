"""Clustering without the scaling matrix: the paper's ablation of P (arXiv 2307.08941, section 5, "Clustering")."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..recipe import FusionConfig
from ..tensors import CLUSTERINGS, FFNWeights
from .each import each_ffn

__all__ = ["CLUSTER", "fold_clusters"]


def fold_clusters(weights: FFNWeights, labels: np.ndarray) -> FFNWeights:
    """The centroids of fusion, with √P folded into both sides of the activation instead of P standing behind it.

    Outputs are those of fusion where the activation is positively homogeneous (ReLU) or the FFN gated, and close to
    them otherwise; the training dynamics are not.

    Args:
        weights: The FFN of I units.
        labels: Cluster of each unit, `[I]`.

    Returns:
        The FFN of k units.
    """
    merged = weights.merged(labels)
    root = torch.from_numpy(np.sqrt(np.bincount(labels))).to(merged.up)
    return replace(
        merged,
        up=merged.up * root[:, None],
        up_bias=None if merged.up_bias is None else merged.up_bias * root,
        down=merged.down * root,
    )


def _cluster(weights: FFNWeights, width: int, config: FusionConfig) -> FFNWeights:
    return fold_clusters(weights, CLUSTERINGS[config.clustering](weights.features(), width, config.seed))


CLUSTER = each_ffn("cluster", "narrow", _cluster)
"""Centroids of the recipe's clustering, √P folded into both sides."""
