"""Several FFNs at once, many widths of one elimination, and errors in another metric."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_refit import draw, moments_of, obs_select, sizes

from hf_mlp_fusion.tensors import eliminate


@settings(deadline=None)
@given(data=st.data(), **sizes)
def test_ffns_together_are_as_each_alone(tokens, units, d, seed, data):
    found = [moments_of(*draw(tokens, units, d, seed + index)) for index in range(3)]
    k = data.draw(st.integers(1, units))
    for alone, together in zip(found, eliminate(found, k), strict=True):
        own = eliminate([alone], k)[0]
        assert torch.equal(own.order, together.order)
        torch.testing.assert_close(own.rise, together.rise)
        assert len(own.rise) == units - k + 1


@settings(deadline=None)
@given(data=st.data(), **sizes)
def test_one_elimination_serves_every_width_above(tokens, units, d, seed, data):
    moments = moments_of(*draw(tokens, units, d, seed))
    k = data.draw(st.integers(1, units))
    wider = data.draw(st.integers(k, units))
    found = eliminate([moments], k)[0]
    assert torch.equal(found.kept(wider), obs_select(moments, wider)[0])
    assert len(found.kept(units)) == units


@settings(deadline=None)
@given(data=st.data(), **sizes)
def test_a_metric_is_a_change_of_coordinates_of_the_output(tokens, units, d, seed, data):
    moments = moments_of(*draw(tokens, units, d, seed))
    factor = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    changed = replace(moments, cross=moments.cross @ factor)
    k = data.draw(st.integers(1, units))
    found, expected = eliminate([moments], k, metrics=[factor])[0], eliminate([changed], k)[0]
    assert torch.equal(found.order, expected.order)
    torch.testing.assert_close(found.rise, expected.rise)


def test_what_the_metric_does_not_see_costs_nothing():
    """Two of four units write where the loss does not look: they go first, though they write ten times more."""
    hidden = torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    down = torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 10.0, 20.0]], dtype=torch.float64)
    moments = moments_of(hidden, hidden @ down.T, centred=False)
    blind = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert obs_select(moments, 2)[0].tolist() == [2, 3]
    kept, rise = obs_select(moments, 2, metrics=[blind])
    assert kept.tolist() == [0, 1]
    assert float(rise[-1]) < 1e-6
