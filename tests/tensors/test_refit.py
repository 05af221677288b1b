"""Moments, refit and selection, against plain least squares on the tokens themselves."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mlp_fusion.tensors.moments import Moments, MomentSums
from hf_mlp_fusion.tensors.refit import cholesky, ridge_refit
from hf_mlp_fusion.tensors.selection import assign_units, eliminate

sizes = {"tokens": st.integers(12, 60), "units": st.integers(2, 9), "d": st.integers(1, 5), "seed": st.integers(0, 99)}


def obs_select(moments, k, **options):
    """The units that are kept, and the rise of the error."""
    found = eliminate([moments], k, **options)[0]
    return found.kept(k), found.rise


def draw(tokens, units, d, seed, rank=None):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(tokens, rank or units, generator=generator)
    if rank is not None:
        h = h @ torch.randn(rank, units, generator=generator)
    return h + 1.0, torch.randn(tokens, d, generator=generator) + 2.0


def moments_of(h, y, centred=True, chunks=1):
    sums = MomentSums(centred=centred)
    for part_h, part_y in zip(h.chunk(chunks), y.chunk(chunks), strict=True):
        sums.add(part_h, part_y)
    return sums.moments()


@given(centred=st.booleans(), chunks=st.integers(1, 4), **sizes)
def test_moments_are_those_of_the_tokens(tokens, units, d, seed, centred, chunks):
    h, y = draw(tokens, units, d, seed)
    found = moments_of(h, y, centred, chunks)
    h, y = h.double(), y.double()
    if centred:
        torch.testing.assert_close(found.h_mean, h.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.y_mean, y.mean(0), rtol=1e-5, atol=1e-6)
        h, y = h - h.mean(0), y - y.mean(0)
    torch.testing.assert_close(found.gram, h.T @ h / tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.cross, h.T @ y / tokens, rtol=1e-4, atol=1e-5)
    assert found.y_square == pytest.approx(float(y.square().sum() / tokens), rel=1e-4)
    assert found.count == tokens
    weight = torch.randn(d, units, dtype=torch.float64)
    assert found.error(weight) == pytest.approx(float((y - h @ weight.T).norm() / y.norm()), rel=1e-3)


def test_no_token_is_an_error():
    with pytest.raises(ValueError, match="no token"):
        MomentSums(centred=True).moments()


@given(**sizes)
def test_refit_is_least_squares(tokens, units, d, seed):
    h, y = (x.double() for x in draw(tokens, units, d, seed))
    weight, bias = ridge_refit(moments_of(h, y), torch.zeros(d, units), ridge=1e-12)
    design = torch.cat([h, torch.ones(tokens, 1, dtype=torch.float64)], 1)
    expected = torch.linalg.lstsq(design, y, driver="gelsd").solution
    torch.testing.assert_close(design @ torch.cat([weight.T, bias[None]]), design @ expected, rtol=1e-3, atol=1e-3)


@given(centred=st.booleans(), **sizes)
def test_refit_finds_the_weights_that_made_the_output(tokens, units, d, seed, centred):
    h, _ = draw(tokens + units, units, d, seed)
    true = torch.randn(d, units, generator=torch.Generator().manual_seed(seed))
    y = h @ true.T + (3.0 if centred else 0.0)
    moments = moments_of(h, y, centred)
    # With the true weights for a prior nothing moves, whatever the penalty.
    weight, bias = ridge_refit(moments, true, ridge=10.0)
    torch.testing.assert_close(weight, true.double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias, torch.full_like(bias, 3.0 if centred else 0.0), rtol=1e-3, atol=1e-3)


@given(units=st.integers(2, 9), rank=st.integers(1, 3), d=st.integers(1, 4), seed=st.integers(0, 99))
def test_singular_moments_keep_the_prior_where_they_say_nothing(units, rank, d, seed):
    h, y = draw(40, units, d, seed, rank=min(rank, units - 1))
    prior = torch.randn(d, units, generator=torch.Generator().manual_seed(seed))
    moments = moments_of(h, y)
    weight, bias = ridge_refit(moments, prior)
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()
    values, vectors = torch.linalg.eigh(moments.gram)
    silent = vectors[:, values < 1e-9 * values[-1]]
    torch.testing.assert_close(weight @ silent, prior.double() @ silent, rtol=1e-2, atol=1e-2)


def test_dead_units_are_no_trouble():
    h, y = torch.zeros(10, 4), torch.ones(10, 2)
    moments = moments_of(h, y)
    weight, bias = ridge_refit(moments, torch.zeros(2, 4))
    assert weight.abs().max() == 0
    assert bias.tolist() == [1.0, 1.0]
    kept, rise = obs_select(moments, 2)
    assert len(kept) == 2
    assert torch.isfinite(rise).all()
    assert sorted(np.bincount(assign_units(moments, kept), minlength=2))[0] >= 1


def refitted_loss(moments, units, ridge):
    """Squared error left by the best weights on some units, the penalty included."""
    factor = cholesky(moments.gram, ridge)
    gram = (factor @ factor.T)[units][:, units]
    return moments.y_square - float((moments.cross[units].T @ torch.linalg.inv(gram) @ moments.cross[units]).trace())


@settings(deadline=None)
@given(data=st.data(), block=st.sampled_from([1, 2, 64]), **sizes)
def test_obs_drops_the_cheapest_unit_each_time(tokens, units, d, seed, data, block):
    moments = moments_of(*draw(tokens, units, d, seed))
    k = data.draw(st.integers(1, units))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_mlp_fusion.tensors.selection._BLOCK", block)
        kept, rise = obs_select(moments, k, ridge=1e-3)
    alive, losses = list(range(units)), [refitted_loss(moments, list(range(units)), 1e-3)]
    while len(alive) > k:  # the same, greedily, by solving each smaller problem anew
        costs = {unit: refitted_loss(moments, [u for u in alive if u != unit], 1e-3) for unit in alive}
        worst = min(costs, key=costs.__getitem__)
        alive.remove(worst)
        losses.append(costs[worst])
    assert kept.tolist() == alive
    np.testing.assert_allclose(rise.numpy(), np.array(losses) - losses[0], rtol=1e-5, atol=1e-7)


def test_obs_finds_the_best_subset_of_orthogonal_units():
    """With uncorrelated units greedy is optimal: compare with all subsets."""
    weight = torch.tensor([[3.0, 0.1, 2.0, 0.2, 1.0]], dtype=torch.float64)
    moments = Moments(
        100,
        torch.eye(5, dtype=torch.float64),
        weight.T.clone(),
        torch.zeros(5),
        torch.zeros(1),
        float(weight.square().sum()),
    )
    kept, _ = obs_select(moments, 3)
    best = min(itertools.combinations(range(5), 3), key=lambda units: refitted_loss(moments, list(units), 1e-3))
    assert tuple(kept.tolist()) == best == (0, 2, 4)


@given(data=st.data(), **sizes)
def test_every_unit_is_stood_for(tokens, units, d, seed, data):
    moments = moments_of(*draw(tokens, units, d, seed))
    kept = torch.tensor(sorted(data.draw(st.sets(st.integers(0, units - 1), min_size=1))))
    labels = assign_units(moments, kept)
    assert labels[kept.numpy()].tolist() == list(range(len(kept)))
    counts = np.bincount(labels, minlength=len(kept))
    assert counts.sum() == units
    assert counts.min() >= 1


def test_a_copy_goes_to_its_original():
    h, y = draw(50, 3, 2, 0)
    h = torch.cat([h, -2 * h[:, 1:2], h[:, 2:3] + 5], 1)
    assert assign_units(moments_of(h, y), torch.tensor([0, 1, 2])).tolist() == [0, 1, 2, 1, 2]


def test_moments_of_some_units():
    h, y = draw(30, 5, 2, 1)
    found, expected = moments_of(h, y).of_units(torch.tensor([4, 1])), moments_of(h[:, [4, 1]], y)
    torch.testing.assert_close(found.gram, expected.gram, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.cross, expected.cross, rtol=1e-4, atol=1e-4)
    assert found.count == 30


@pytest.mark.parametrize("noise", [0.0, -1e-8, 1e-9])
def test_activations_that_do_not_vary_choose_and_refit(noise):
    """What rounding leaves of their Gram matrix is indefinite."""
    generator = torch.Generator().manual_seed(0)
    gram = noise * torch.randn(16, 16, generator=generator, dtype=torch.float64)
    zero = torch.zeros(16, dtype=torch.float64)
    moments = Moments(9, gram, gram[:, :4], zero, zero[:4], 0.0)
    kept, rise = obs_select(moments, 5)
    assert len(set(kept.tolist())) == 5
    assert rise.isfinite().all()
    prior = torch.ones(4, 5, dtype=torch.float64)
    weight, bias = ridge_refit(moments.of_units(kept), prior)
    assert weight.isfinite().all()
    assert bias.isfinite().all()


def test_a_gram_matrix_of_nan_is_refused():
    with pytest.raises(ValueError, match="NaN or infinity"):
        cholesky(torch.full((3, 3), torch.nan))
