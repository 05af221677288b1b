"""Fusion of FFNs by clustering their units, without data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from ..data import spare_bytes
from ..modeling.ffn import FFN
from ..recipe import FusionConfig
from ..tensors import CLUSTERINGS, Fusion, fuse_weights, inertia
from .receipts import ReducedFFN

__all__ = ["at_once", "cluster", "cluster_all"]

_THREADS = 12


def cluster(ffn: FFN, width: int, config: FusionConfig) -> ReducedFFN[Fusion]:
    """Fuses an FFN.

    Args:
        ffn: The FFN.
        width: Units to keep.
        config: The recipe, resolved.
    """
    weights = ffn.read()
    labels = CLUSTERINGS[config.clustering](weights.features(), width, config.seed)
    fused = fuse_weights(weights, labels)
    return ReducedFFN(fused, inertia(weights.features(), labels), "clusters")


def cluster_all(ffns: Sequence[tuple[FFN, int]], config: FusionConfig) -> dict[str, ReducedFFN[Fusion]]:
    """Fuses FFNs, on a GPU side by side.

    Args:
        ffns: FFNs, each with the units to keep.
        config: The recipe, resolved.

    Returns:
        The fused FFNs by name.
    """
    # k-means limits the threads of its libraries meanwhile, which is for all threads of the process.
    workers = at_once(ffns[0][0]) if ffns and config.clustering == "ward" else 1
    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(lambda item: cluster(item[0], item[1], config), ffns)
        return {ffn.name: fused for (ffn, _), fused in zip(ffns, done, strict=True)}


def at_once(ffn: FFN) -> int:
    """How many FFNs like one are best clustered at once.

    On a GPU distances take no time beside the merging of clusters, which is done by the CPU, one core for an FFN. On a
    CPU distances take most, on all cores.

    Args:
        ffn: The FFN, its weights in memory.
    """
    device = ffn.read().down.device
    if device.type == "cpu":
        return 1
    room = spare_bytes(torch.device("cpu")) // (8 * ffn.width**2)  # the distances of each pair, and as much again
    return max(1, min(_THREADS, os.cpu_count() or 1, room))
