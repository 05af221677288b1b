import itertools

import pytest
import torch
from conftest import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from tiny_batches import batches

from hf_mlp_fusion import FusionConfig, FusionConfigError, fuse_model
from hf_mlp_fusion.measure import output_error
from hf_mlp_fusion.tensors.allocation import allocate_widths


def convex(drops, scale, seed):
    """A rise that grows faster and faster, as a backward elimination's does."""
    steps = torch.rand(drops, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sort().values
    return torch.cat([torch.zeros(1, dtype=torch.float64), scale * steps.cumsum(0)])


@given(st.lists(st.tuples(st.integers(2, 6), st.floats(0.1, 9)), min_size=1, max_size=3), st.data())
def test_greedy_is_optimal_on_convex_curves(ffns, data):
    full = [width for width, _ in ffns]
    rises = [convex(width - 1, scale, index) for index, (width, scale) in enumerate(ffns)]
    budget = data.draw(st.integers(len(full), sum(full)))
    found = allocate_widths(rises, full, budget, step=1)

    def cost(widths):
        return sum(float(rise[units - width]) for rise, units, width in zip(rises, full, widths, strict=True))

    assert sum(found) == budget
    choices = itertools.product(*(range(1, units + 1) for units in full))
    best = min(cost(widths) for widths in choices if sum(widths) == budget)
    assert cost(found) == pytest.approx(best)


@given(st.integers(1, 5), st.integers(0, 40))
def test_budget_and_step_are_kept(step, budget):
    rises = [convex(10 - step, 1.0, 0), convex(14 - step, 2.0, 1)]
    widths = allocate_widths(rises, [10, 14], budget, step)
    assert min(widths) >= step
    assert sum(widths) <= max(budget, 2 * step)
    assert sum(widths) > min(budget, 24) - step or sum(widths) == 2 * step


def test_widths_by_search_beat_even_ones():
    model = tiny_model("bert")
    with torch.no_grad():  # a layer whose units are all the same needs none of them
        dense = model.bert.encoder.layer[1].intermediate.dense
        dense.weight.copy_(dense.weight[:1].expand_as(dense.weight))
        dense.bias.fill_(0.3)
    data = batches(model, count=40)
    errors, totals = [], []
    for width in (0.25, "auto:0.25"):
        fused = fuse_model(model, FusionConfig(width=width, multiple_of=4, ntk="none"), calibration=data)
        errors.append(sum(error**2 for error in output_error(model, fused, data).ffns.values()))
        totals.append(sum(report.width for report in fused.fusion_report.ffns))
    assert totals == [48, 48]
    assert errors[1] < 0.9 * errors[0]
    assert fused.config.mlp_fusion["ffns"]["encoder.layer.1"]["width"] == 4
    assert fused.config.mlp_fusion["recipe"]["width"] == "auto:0.25"


@pytest.mark.parametrize("width", ["auto", "auto:", "auto:1.5", "auto:0", "0.25", "auto:-1"])
def test_what_is_no_width(width):
    with pytest.raises(FusionConfigError, match="width="):
        FusionConfig(width=width)


def test_a_search_needs_data():
    with pytest.raises(FusionConfigError, match="pass calibration="):
        fuse_model(tiny_model("bert"), FusionConfig(width="auto:0.25", multiple_of=4))
