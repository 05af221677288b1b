import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_mlp_fusion.tensors.cluster_sizes import even_cluster_sizes
from hf_mlp_fusion.tensors.clustering import ward
from hf_mlp_fusion.tensors.reduction import FFNWeights, fuse_weights


def random_ffn(width, d, *, bias, gated, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    return FFNWeights(
        up=draw(width, d),
        down=draw(d, width),
        up_bias=draw(width) if bias else None,
        gate=draw(width, d) if gated else None,
        gate_bias=draw(width) if bias and gated else None,
        down_bias=draw(d) if bias else None,
    )


def forward(ffn, x, scaling=None):
    """The formula of the docstring, in float64."""
    linear = torch.nn.functional.linear
    ffn = FFNWeights(**{name: None if t is None else t.double() for name, t in vars(ffn).items()})
    up = linear(x, ffn.up, ffn.up_bias)
    hidden = torch.nn.functional.gelu(up if ffn.gate is None else linear(x, ffn.gate, ffn.gate_bias))
    hidden = hidden if ffn.gate is None else hidden * up
    return linear(hidden if scaling is None else hidden * scaling, ffn.down, ffn.down_bias)


def repeated(ffn, times):
    """Each unit several times, output unchanged up to the factor in the down projection."""

    def rows(part):
        return None if part is None else part.repeat(times, *[1] * (part.dim() - 1))

    return FFNWeights(
        rows(ffn.up), ffn.down.repeat(1, times), rows(ffn.up_bias), rows(ffn.gate), rows(ffn.gate_bias), ffn.down_bias
    )


kinds = {"bias": st.booleans(), "gated": st.booleans(), "seed": st.integers(0, 99)}


@given(k=st.integers(1, 6), d=st.integers(1, 5), times=st.integers(1, 4), **kinds)
def test_duplicated_units_fuse_exactly(k, d, times, bias, gated, seed):
    ffn = repeated(random_ffn(k, d, bias=bias, gated=gated, seed=seed), times)
    fusion = fuse_weights(ffn, ward(ffn.features(), k))
    x = torch.randn(7, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(forward(fusion.weights, x, fusion.cluster_sizes), forward(ffn, x))
    assert fusion.cluster_sizes.tolist() == [times] * k
    assert torch.equal(fusion.weights.up, ffn.up[:k])  # bit for bit: the mean of equal numbers is that number


@given(width=st.integers(1, 9), d=st.integers(1, 5), **kinds)
def test_full_width_changes_nothing(width, d, bias, gated, seed):
    ffn = random_ffn(width, d, bias=bias, gated=gated, seed=seed)
    fusion = fuse_weights(ffn, np.arange(width))
    assert fusion.cluster_sizes.tolist() == [1] * width
    for name, tensor in vars(ffn).items():
        fused = getattr(fusion.weights, name)
        assert (fused is None) if tensor is None else torch.equal(fused, tensor)


@given(width=st.integers(2, 12), d=st.integers(1, 4), data=st.data(), **kinds)
def test_centroids_are_means_of_their_units(width, d, data, bias, gated, seed):
    ffn = random_ffn(width, d, bias=bias, gated=gated, seed=seed)
    labels = ward(ffn.features(), data.draw(st.integers(1, width)))
    merged = ffn.merged(labels).features()
    for cluster in set(labels):
        torch.testing.assert_close(merged[cluster], ffn.features()[labels == cluster].mean(0))


def test_features_are_the_sub_mlps():
    ffn = random_ffn(3, 2, bias=True, gated=True)
    v = ffn.features()
    assert v.shape == (3, ffn.unit_size) == (3, 3 * 2 + 2)
    assert torch.equal(v[1], torch.cat([ffn.up[1], ffn.up_bias[1:2], ffn.gate[1], ffn.gate_bias[1:2], ffn.down[:, 1]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_keep_their_dtype(dtype):
    ffn = random_ffn(8, 3, bias=True, gated=False, dtype=dtype)
    fused = fuse_weights(ffn, np.array([0, 0, 1, 1, 2, 2, 3, 3])).weights
    assert fused.up.dtype == fused.down.dtype == fused.up_bias.dtype == dtype
    torch.testing.assert_close(fused.up[0], ffn.up[:2].double().mean(0).to(dtype), rtol=0, atol=0)


@given(st.integers(1, 300), st.data())
def test_even_cluster_sizes(original_width, data):
    width = data.draw(st.integers(1, original_width))
    sizes = even_cluster_sizes(width, original_width)
    assert sizes.sum() == original_width
    assert sizes.max() - sizes.min() <= 1
    assert sizes.min() >= 1
    assert sizes.dtype == torch.int32
