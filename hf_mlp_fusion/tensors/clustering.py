"""Clusterings: feature vectors in, a label for each vector out. Nothing here knows of models."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

__all__ = ["CLUSTERINGS", "canonical_labels", "inertia", "kmeans", "squared_distances", "ward"]

# Rows and columns of the features that are taken in float64 at once: what a product of them needs.
_ROWS, _COLUMNS = 1024, 2048


def squared_distances(features: torch.Tensor) -> np.ndarray:
    """Pairwise squared Euclidean distances, accumulated in float64 by matrix products.

    Args:
        features: Vectors, shape `[n, f]`, any floating dtype, on any device that has float64.

    Returns:
        Those of each pair once, in the order of scipy's `pdist`, shape `[n (n - 1) / 2]`, float64: there is nothing
        larger than it, and the features, in memory.
    """
    n, size = features.shape
    # Distances do not change under a shift, and small norms lose fewer digits in |a|^2 + |b|^2 - 2ab.
    centre = _mean(features)
    parts = [slice(start, start + _COLUMNS) for start in range(0, size, _COLUMNS)]

    # The same memory each time: freed blocks of such sizes do not go back to the system.
    buffers = torch.empty(2, min(n, _ROWS), min(size, _COLUMNS), dtype=torch.float64, device=features.device)

    def block(side: int, start: int, part: slice) -> torch.Tensor:
        rows = features[start : start + _ROWS, part]
        return buffers[side, : len(rows), : rows.shape[1]].copy_(rows).sub_(centre[part])

    starts = range(0, n, _ROWS)
    norms = torch.zeros(n, dtype=torch.float64, device=features.device)
    for start in starts:
        for part in parts:
            norms[start : start + _ROWS] += block(0, start, part).square_().sum(dim=1)
    distances = np.empty(n * (n - 1) // 2)
    for start in starts:
        stop = min(n, start + _ROWS)
        for column in range(0, stop, _ROWS):
            found = norms[start:stop, None] + norms[column : min(stop, column + _ROWS)]
            for part in parts:
                found.addmm_(block(0, start, part), block(1, column, part).T, alpha=-2)
            found.clamp_(min=0)
            # A row a vector: its distances to those from `start` on, of which those that come after it are kept.
            for number, row in enumerate(found.T.cpu().numpy(), column):
                first = max(start, number + 1)
                place = n * number - number * (number + 1) // 2 + first - number - 1
                distances[place : place + stop - first] = row[first - start :]
    return distances


def _mean(features: torch.Tensor) -> torch.Tensor:
    """Their mean in float64, without a copy of all of them in it."""
    total = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
    for rows in features.split(_ROWS):
        total += rows.double().sum(dim=0)
    return total / len(features)


def ward(features: torch.Tensor, k: int, seed: int = 0) -> np.ndarray:
    """Agglomerative clustering by Ward's criterion (the pair of clusters whose union adds least inertia is merged).

    It beats k-means on FFN units, takes seconds, and has no randomness.

    Args:
        features: Vectors, shape `[n, f]`.
        k: Number of clusters, 1 to n.
        seed: Not used: the result does not depend on chance.

    Returns:
        Labels 0 to k - 1 in order of first appearance, shape `[n]`, int64. Every label occurs.
    """
    # scipy's algorithm and result, in two thirds of its time, without a copy, and beside other threads.
    from fastcluster import linkage
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(features)
    if k == n:
        return np.arange(n)
    distances = squared_distances(features)
    del features  # may be as large as what comes next
    np.sqrt(distances, out=distances)
    merges = linkage(distances, method="ward", preserve_input=False)[: n - k, :2].astype(np.int64)
    # The first n - k merges form a forest over the vectors (nodes 0..n-1) and the unions (nodes n..): its trees are
    # the clusters. (`fcluster(maxclust)` may return fewer than k clusters where merge heights tie.)
    unions = np.repeat(np.arange(n, n + len(merges)), 2)
    graph = coo_array((np.ones(len(unions)), (unions, merges.ravel())), shape=(n + len(merges),) * 2)
    _, labels = connected_components(graph, directed=False)
    return canonical_labels(labels[:n])


def kmeans(features: torch.Tensor, k: int, seed: int = 0) -> np.ndarray:
    """k-means (k-means++ start, Lloyd's algorithm), the clustering of the paper.

    Args:
        features: Vectors, shape `[n, f]`. Where they are float32 and on the CPU, they are centred meanwhile in their
            own memory, and are the same but for rounding afterwards.
        k: Number of clusters, 1 to n.
        seed: Seed of the start.

    Returns:
        Labels 0 to k - 1 in order of first appearance, shape `[n]`, int64. Where the vectors have fewer than k
        distinct values, copies are split off until every label occurs.
    """
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # Centres are summed thread by thread in the order in which threads finish: one thread makes the bits repeatable.
    with threadpool_limits(1), warnings.catch_warnings():
        # Fewer distinct vectors than clusters: mended below.
        warnings.simplefilter("ignore", ConvergenceWarning)
        means = KMeans(k, random_state=seed, n_init=1, copy_x=False)  # a copy may be gigabytes
        labels = means.fit(features.float().cpu().numpy()).labels_.astype(np.int64)
    counts = np.bincount(labels, minlength=k)
    for empty in np.flatnonzero(counts == 0):
        moved = np.flatnonzero(labels == counts.argmax())[-1]
        counts[labels[moved]] -= 1
        counts[empty] += 1
        labels[moved] = empty
    return canonical_labels(labels)


def canonical_labels(labels: np.ndarray) -> np.ndarray:
    """Renames labels to 0, 1, ... in order of first appearance, so that equal partitions have equal labels.

    Args:
        labels: Integers, shape `[n]`.

    Returns:
        Shape `[n]`, int64.
    """
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def inertia(features: torch.Tensor, labels: np.ndarray) -> float:
    """Share of the features' variance that the clusters lose.

    Args:
        features: Vectors, shape `[n, f]`.
        labels: Cluster of each vector, shape `[n]`, values 0 to k - 1.

    Returns:
        The squared distances to the own cluster's centroid, summed, divided by those to the mean of all: 0.0 where
        every cluster holds equal vectors, 1.0 for a single cluster.
    """
    index = torch.from_numpy(labels).to(features.device)
    k, n = int(labels.max()) + 1, len(features)
    counts = torch.bincount(index, minlength=k).clamp(min=1)
    sums = torch.zeros(k, features.shape[1], dtype=torch.float64, device=features.device)
    parts = list(zip(features.split(_ROWS), index.split(_ROWS), strict=True))
    for rows, own in parts:
        sums.index_add_(0, own, rows.double())
    mean, centroids = sums.sum(dim=0) / n, sums.div_(counts[:, None])
    total = within = norm = 0.0
    for rows, own in parts:
        vectors = rows.double()
        total += (vectors - mean).square_().sum().item()
        within += (vectors - centroids[own]).square_().sum().item()
        norm += vectors.square().sum().item()
    # Equal vectors have no variance, but their computed mean may differ from them in the last bits.
    return within / total if total > 1e-24 * norm else 0.0


CLUSTERINGS: dict[str, Callable[[torch.Tensor, int, int], np.ndarray]] = {"ward": ward, "kmeans": kmeans}
"""Clusterings by the name that `FusionConfig.clustering` takes."""
