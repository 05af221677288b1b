"""Displacement, loss curves and critical rates, compared with what theory gives."""

import copy
import json
import math

import pytest
import torch
import transformers
from any_family import inputs_of_any, tiny_family_model
from conftest import first_output, repeat_units, tiny_model
from transformers.utils import ModelOutput

from hf_mlp_fusion import FusionConfig, UnsupportedModelError, fuse_model
from hf_mlp_fusion.baselines import reduce_model
from hf_mlp_fusion.errors import DataError
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.measure import dynamics
from hf_mlp_fusion.measure.displacement import displacements, ffn_inputs
from hf_mlp_fusion.measure.short_run import critical_rate, trained
from hf_mlp_fusion.modeling.find import find_ffns
from hf_mlp_fusion.modeling.power import set_powers

TIMES = 4
COPIES = FusionConfig(width=64 // TIMES, targets="all")


def rows(count=5, length=12, rows=6):
    ids = torch.randint(2, 90, (count, rows, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": batch, "labels": batch} for batch in ids]


def copies(family):
    """A model of units four of which are alike, and its fusion, which loses nothing."""
    model = tiny_model(family).double()
    repeat_units(model, TIMES)
    fused = fuse_model(model, COPIES)
    torch.testing.assert_close(first_output(fused), first_output(model))
    return model, fused


def with_p(fused, power):
    """The same function, P to a power and the rest in W2."""
    changed = copy.deepcopy(fused)
    set_powers(changed, power)
    torch.testing.assert_close(first_output(changed), first_output(fused))
    return changed


def test_equal_models_move_alike():
    fused = fuse_model(tiny_model("bert"), FusionConfig(width=16))
    found = dynamics(fused, copy.deepcopy(fused), rows(), learning_rate=1e-3)
    assert found.inner == found.outer == 1.0
    assert found.loss_gap == 0.0
    assert found.losses == found.original_losses
    assert len(found.losses) == 4
    assert found.critical_rate == found.original_critical_rate > 0
    assert all(item.inner > 0 and item.outer > 0 for item in found.displacements.values())


@pytest.mark.parametrize("family", ["gpt2", "bert", "switch_transformers"])
def test_p_moves_copies_as_the_original_does(family):
    """The paper's claim: one stored weight behind P moves the function as P weights that move alike."""
    model, fused = copies(family)
    found = dynamics(model.eval(), fused, without_dropout(model, fused), learning_rate=1e-4)
    close = 1e-2 if family == "switch_transformers" else 1e-3  # whose gradients come near Adam's epsilon
    assert found.inner == pytest.approx(1.0, rel=close)
    assert found.outer == pytest.approx(1.0, rel=close)
    assert found.curvature == pytest.approx(1.0, rel=10 * close)
    assert found.loss_gap < 1e-5
    assert found.critical_rate == pytest.approx(found.original_critical_rate, rel=0.05)


def without_dropout(*models):
    for model in models:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            for name in ("attention_dropout", "dropout_rate", "dropout_prob"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
    return rows()


@pytest.mark.parametrize(("power", "outer"), [(1.0, 1.0), (0.5, TIMES**-0.5), (0.0, 1 / TIMES)])
def test_w2_moves_as_far_as_p_says(power, outer):
    model, fused = copies("gpt2")
    batches = without_dropout(model, fused)[:2]
    found = dynamics(model, with_p(fused, power), batches, learning_rate=1e-4)
    assert found.inner == pytest.approx(1.0, rel=1e-3)
    assert found.outer == pytest.approx(outer, rel=1e-3)
    assert {round(found.ratios(name).outer, 2) for name in found.displacements} == {round(outer, 2)}


def test_twice_p_moves_w2_twice_as_far():
    fused = fuse_model(tiny_model("gpt2").double(), FusionConfig(width=16))
    batches = without_dropout(fused)[:2]
    doubled = copy.deepcopy(fused)
    with torch.no_grad():
        for ffn in find_ffns(doubled):
            ffn.read().down.div_(2)
            ffn.scaling.cluster_sizes = 2 * ffn.scaling.cluster_sizes
    found = dynamics(fused, doubled, batches, learning_rate=1e-4)
    assert found.outer == pytest.approx(2.0, rel=1e-3)
    assert found.inner == pytest.approx(1.0, rel=1e-3)


def test_nothing_is_changed():
    model = tiny_model("gpt2").train()
    fused = fuse_model(model, FusionConfig(width=16))
    states = [{name: tensor.clone() for name, tensor in item.state_dict().items()} for item in (model, fused)]
    random = torch.get_rng_state()
    one = dynamics(model, fused, rows(), seed=3)
    assert torch.equal(torch.get_rng_state(), random)
    for item, before in zip((model, fused), states, strict=True):
        assert item.training
        assert all(torch.equal(before[name], tensor) for name, tensor in item.state_dict().items())
        assert all(parameter.grad is None for parameter in item.parameters())
        for ffn in find_ffns(item):
            assert not any(module._forward_hooks or module._forward_pre_hooks for module in ffn.host.modules())
    torch.randn(5)
    assert dynamics(model, fused, rows(), seed=3) == one


def test_the_parts_are_those_of_the_weights():
    model = tiny_model("gpt2").double()
    batches = rows()
    names = [ffn.name for ffn in find_ffns(model)]
    inputs = ffn_inputs(model, names, batches[-1])
    assert all(len(item) == 6 * 12 for item in inputs.values())
    after, _ = trained(model, batches[:1], 1e-3, seed=0)
    before, moved = model.transformer.h[1].mlp, copy.deepcopy(after.transformer.h[1].mlp)
    found = displacements(model, after, inputs)["h.1.mlp"]
    with torch.no_grad():
        seen = inputs["h.1.mlp"]
        start = before.c_proj(before.act(before.c_fc(seen)))
        inner = before.c_proj(before.act(moved.c_fc(seen))) - start
        outer = moved.c_proj(before.act(before.c_fc(seen))) - start - (moved.c_proj.bias - before.c_proj.bias)
    assert found.inner == pytest.approx(inner.square().sum(1).mean().sqrt().item(), rel=1e-9)
    assert found.outer == pytest.approx(outer.square().sum(1).mean().sqrt().item(), rel=1e-9)


@pytest.mark.parametrize("family", ["llama", "phi3", "t5", "mixtral"])
def test_other_kinds(family):
    model = tiny_family_model(FAMILIES[family])
    fused = fuse_model(model, FusionConfig(width=32, targets="all"))
    batches = [inputs_of_any(model, batch=8, seed=seed) for seed in range(3)]
    for batch in batches:
        batch["labels"] = batch.get("decoder_input_ids", batch["input_ids"])
    found = dynamics(model, fused, batches, learning_rate=1e-3)
    assert 0.01 < found.inner < 100
    assert 0.01 < found.outer < 100
    assert set(found.displacements) <= {ffn.name for ffn in find_ffns(model)}
    assert json.loads(json.dumps(found.to_dict()))["inner"] == found.inner


def test_rivals_and_what_cannot_be_told():
    model = tiny_model("gpt2")
    assert dynamics(model, reduce_model(model, FusionConfig(width=16), "prune"), rows(2)).outer > 0
    with pytest.raises(UnsupportedModelError, match="thin factors"):
        dynamics(model, reduce_model(model, FusionConfig(width=16), "svd"), rows(2))
    fused = fuse_model(model, FusionConfig(width=16))
    for few in ([], rows(1)):
        with pytest.raises(DataError, match="two batches or more"):
            dynamics(model, fused, few)
    with pytest.raises(DataError, match="give them `labels`"):
        dynamics(model, fused, [{"input_ids": batch["input_ids"]} for batch in rows()])
    with pytest.raises(UnsupportedModelError, match="another model"):
        dynamics(tiny_model("bert"), fused, rows())


class Line(transformers.PreTrainedModel):
    """One weight; the loss is a function of it that the first input id chooses."""

    config_class = transformers.PreTrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.post_init()

    def forward(self, input_ids, labels=None):
        w = self.weight
        return ModelOutput(loss=[(w - 0.01).square(), -w, w][int(input_ids[0, 0])])


@pytest.mark.parametrize(("fresh", "expected"), [(0, 0.01), (1, math.inf), (2, 0.0)])
def test_the_critical_rate_of_a_line(fresh, expected):
    """Adam's step is the rate: it ends at the parabola's lowest point, goes down for ever, or up."""
    model = Line(transformers.PreTrainedConfig())
    batches = [{"input_ids": torch.tensor([[choice]])} for choice in (0, fresh)]
    assert critical_rate(model, batches[:1] * 3, batches[1]) == pytest.approx(expected, rel=0.05)
    assert model.weight == 0
    assert model.weight.grad is None
