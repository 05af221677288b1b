import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from hf_mlp_fusion.tensors.clustering import CLUSTERINGS, canonical_labels, inertia, squared_distances, ward

shapes = st.tuples(st.integers(1, 40), st.integers(1, 6), st.integers(0, 1000))


def vectors(n, f, seed):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, f)))


@given(shapes)
def test_squared_distances_are_scipys(shape):
    x = vectors(*shape)
    np.testing.assert_allclose(squared_distances(x), pdist(x, "sqeuclidean"), atol=1e-12)


def test_squared_distances_are_scipys_over_several_blocks(monkeypatch):
    monkeypatch.setattr("hf_mlp_fusion.tensors.clustering._ROWS", 7)
    x = vectors(30, 4, 0)
    np.testing.assert_allclose(squared_distances(x), pdist(x, "sqeuclidean"), atol=1e-12)


@settings(deadline=None)
@given(shapes, st.data(), st.sampled_from(sorted(CLUSTERINGS)))
def test_labels_are_canonical_and_all_occur(shape, data, name):
    n = shape[0]
    k = data.draw(st.integers(1, n))
    labels = CLUSTERINGS[name](vectors(*shape), k, 0)
    assert labels.shape == (n,)
    assert labels.dtype == np.int64
    assert sorted(set(labels)) == list(range(k))
    np.testing.assert_array_equal(labels, canonical_labels(labels))


@given(st.integers(2, 30), st.integers(0, 100), st.data())
def test_ward_is_scipys_ward(n, seed, data):
    k = data.draw(st.integers(1, n))
    x = vectors(n, 3, seed)
    np.testing.assert_array_equal(
        ward(x, k), canonical_labels(fcluster(linkage(x.numpy(), "ward"), k, criterion="maxclust"))
    )


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 100), st.sampled_from(sorted(CLUSTERINGS)))
def test_copies_are_found(groups, copies, seed, name):
    x = vectors(groups, 3, seed).repeat(copies, 1)
    labels = CLUSTERINGS[name](x, groups, 0)
    assert len({tuple(labels[g::groups]) for g in range(groups)}) == groups
    assert inertia(x, labels) == pytest.approx(0.0, abs=1e-20)


@pytest.mark.parametrize("name", sorted(CLUSTERINGS))
def test_more_clusters_than_distinct_vectors(name):
    labels = CLUSTERINGS[name](torch.ones(6, 2), 4, 0)
    assert sorted(set(labels)) == [0, 1, 2, 3]


def test_inertia_is_sklearns():
    from sklearn.cluster import KMeans

    x = vectors(50, 4, 3).numpy()
    fitted = KMeans(7, n_init=1, random_state=0).fit(x)
    total = ((x - x.mean(0)) ** 2).sum()
    assert inertia(torch.from_numpy(x), fitted.labels_) == pytest.approx(fitted.inertia_ / total)


def test_one_cluster_loses_everything():
    assert inertia(vectors(9, 2, 0), np.zeros(9, dtype=np.int64)) == pytest.approx(1.0)
