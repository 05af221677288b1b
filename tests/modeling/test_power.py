"""P as a power of the cluster sizes: the same function at every power, saved, loaded, mixed up and exported."""

import json
import shutil

import pytest
import torch
from any_family import WIDTH, output_of_any, tiny_family_model
from conftest import first_output, tiny_model
from test_kinds import kinds, tiny
from tiny_batches import batches
from transformers import AutoConfig, AutoModelForMaskedLM

from hf_mlp_fusion import BrokenCheckpointError, FusionConfig, export_plain, fold, fuse_model, unfold
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.modeling.find import find_ffns
from hf_mlp_fusion.modeling.modules import stock_mlp_class
from hf_mlp_fusion.modeling.power import set_powers

POWERS = [0.0, 0.5, 0.3]
powers = pytest.mark.parametrize("power", POWERS)


def fused_bert(power):
    return fuse_model(tiny_model("bert"), FusionConfig(width=16, power=power))


@kinds
@powers
def test_every_power_is_the_same_function_and_loads_again(kind, power, tmp_path):
    model = tiny(kind).double()
    config = {"width": WIDTH // 2, "targets": "all"}
    paper = fuse_model(model, FusionConfig(**config, power=1))
    other = fuse_model(model, FusionConfig(**config, power=power))
    for one, ffn in zip(find_ffns(paper), find_ffns(other), strict=True):
        assert ffn.scaling.power == power
        assert ffn.scaling.cluster_sizes.equal(one.scaling.cluster_sizes)
        torch.testing.assert_close(ffn.read().down, one.read().down * one.scaling.cluster_sizes ** (1 - power))
    torch.testing.assert_close(output_of_any(other), output_of_any(paper), rtol=1e-12, atol=1e-12)
    other.save_pretrained(tmp_path)
    again = type(other).from_pretrained(tmp_path).eval()
    if again._can_set_experts_implementation():
        again.set_experts_implementation("eager")
    assert output_of_any(again).equal(output_of_any(other))
    assert {ffn.scaling.power for ffn in find_ffns(again)} == {power}


def test_the_default_leaves_nothing_apart_with_data_and_is_the_papers_without():
    model = tiny_model("bert")
    calibrated = fuse_model(model, FusionConfig(width=16), calibration=batches(model))
    assert {ffn.scaling.power for ffn in find_ffns(calibrated)} == {0.0}
    assert calibrated.fusion_report.recipe["power"] == 0.0
    assert calibrated.fusion_report.recipe["ntk"] == "none"
    assert {ffn.scaling.power for ffn in find_ffns(fuse_model(model, FusionConfig(width=16)))} == {1.0}
    paper = fuse_model(model, FusionConfig(width=16, power=1), calibration=batches(model))
    assert paper.fusion_report.recipe["ntk"] == "match"
    torch.testing.assert_close(first_output(paper), first_output(calibrated), rtol=1e-4, atol=1e-5)


@kinds
def test_power_0_multiplies_nothing(kind):
    fused = fuse_model(tiny(kind), FusionConfig(width=WIDTH // 2, targets="all", power=0))
    for ffn in find_ffns(fused):
        assert ffn.holder.is_identity
        ffn.holder.cluster_sizes.fill_(10**6)
    assert output_of_any(fused).isfinite().all()
    wanted = output_of_any(fuse_model(tiny(kind), FusionConfig(width=WIDTH // 2, targets="all", power=0)))
    assert output_of_any(fused).equal(wanted)


def test_scales_of_a_calibration_are_kept_beside_a_power(tmp_path):
    model = tiny_model("bert")
    fused = fuse_model(model, FusionConfig(width=16, power=0.5, ntk="match"), calibration=batches(model))
    assert all(ffn.scaling.scales != (1.0, 1.0) for ffn in find_ffns(fused))
    fused.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert first_output(again).equal(first_output(fused))
    half = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert [ffn.scaling.scales for ffn in find_ffns(half)] == [ffn.scaling.scales for ffn in find_ffns(fused)]
    assert {ffn.scaling.power for ffn in find_ffns(half)} == {0.5}


@pytest.mark.parametrize("own", [1.0, *POWERS])
@powers
def test_a_state_dict_brings_its_power_along(own, power):
    source = fused_bert(power)
    target = fused_bert(own)
    if own != 1.0 or power != 1.0:
        target.load_state_dict(source.state_dict())
    assert first_output(target).equal(first_output(source))


def test_a_state_dict_without_a_power_is_refused_where_there_is_one():
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) .*kernel_scales"):
        fused_bert(0.5).load_state_dict(fused_bert(1.0).state_dict())


@pytest.mark.parametrize(("weights", "config"), [(1.0, 0.5), (0.5, 1.0), (0.5, 0.0), (0.0, 0.3), (1.0, 0.0)])
def test_weights_and_config_of_two_powers_are_refused(weights, config, tmp_path):
    for power, name in ((weights, "weights"), (config, "config")):
        fused_bert(power).save_pretrained(tmp_path / name)
    shutil.copy(tmp_path / "weights" / "model.safetensors", tmp_path / "config" / "model.safetensors")
    with pytest.raises(BrokenCheckpointError, match="they are of two fusions"):
        AutoModelForMaskedLM.from_pretrained(tmp_path / "config")


@pytest.mark.parametrize("power", [-0.5, 1.5, True, "half", None])
def test_a_power_in_the_config_that_is_none_is_refused(power, tmp_path):
    fused_bert(0.5).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    next(iter(config["mlp_fusion"]["ffns"].values()))["power"] = power
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BrokenCheckpointError, match=r"power must be a number from 0 to 1"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("numbers", [[1.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, -1.0], [0.0, 1.0, 1.0, 0.5]])
def test_a_state_dict_with_a_power_that_is_none_is_refused(numbers):
    fused = fused_bert(0.5)
    state = fused.state_dict()
    name = next(name for name in state if name.endswith("kernel_scales"))
    with pytest.raises(BrokenCheckpointError, match="kernel_scales holds"):
        fused.load_state_dict(state | {name: torch.tensor(numbers)})


@powers
def test_folded_unfolded_and_exported(power, tmp_path):
    fused = fused_bert(power)
    before = first_output(fused)
    export_plain(fused, tmp_path / "plain")
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(first_output(plain), before, rtol=1e-5, atol=1e-6)
    fold(fused)
    torch.testing.assert_close(first_output(fused), before, rtol=1e-5, atol=1e-6)
    unfold(fused)
    torch.testing.assert_close(first_output(fused), before, rtol=1e-5, atol=1e-6)
    assert {ffn.scaling.power for ffn in find_ffns(fused)} == {power}
    fused.save_pretrained(tmp_path / "again")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "again")
    assert first_output(again).equal(first_output(fused))


@powers
def test_a_model_of_its_config_alone_trains_and_saves(power, tmp_path):
    fused_bert(power).save_pretrained(tmp_path)
    built = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(tmp_path))
    built.save_pretrained(tmp_path / "built")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "built")
    assert first_output(again).equal(first_output(built.eval()))


def test_a_stack_without_p_runs_the_stock_forward(monkeypatch):
    fused = fuse_model(tiny_family_model(FAMILIES["mixtral"]), FusionConfig(width=WIDTH // 2, power=0))
    host = next(find_ffns(fused)).host
    stock = stock_mlp_class(type(host))
    seen = []
    monkeypatch.setattr(stock, "forward", lambda self, hidden, *rest: seen.append(self) or torch.zeros_like(hidden))
    output_of_any(fused)
    assert all(module is not None and isinstance(module, stock) for module in seen)
    assert len(seen) == len({ffn.entry for ffn in find_ffns(fused)})


@kinds
def test_another_power_in_a_model_as_it_is(kind, tmp_path):
    model = fuse_model(tiny(kind).double(), FusionConfig(width=WIDTH // 2, targets="all", power=0.5))
    wanted = output_of_any(model)
    before = set_powers(model, 1.0)
    assert set(before.values()) == {0.5}
    assert {ffn.scaling.power for ffn in find_ffns(model)} == {1.0}
    torch.testing.assert_close(output_of_any(model), wanted, rtol=1e-12, atol=1e-12)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    if again._can_set_experts_implementation():
        again.set_experts_implementation("eager")
    assert output_of_any(again).equal(output_of_any(model))
    assert set(set_powers(model, before).values()) == {1.0}
    torch.testing.assert_close(output_of_any(model), wanted, rtol=1e-12, atol=1e-12)
