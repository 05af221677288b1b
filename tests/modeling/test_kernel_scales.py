"""s1, s2 and s3 go with the weights that mean nothing without them, and not in the config alone."""

import json
import shutil

import pytest
import torch
from any_family import output_of_any, tiny_family_model
from conftest import first_output, tiny_model
from safetensors.torch import load_file, save_file
from tiny_batches import batches
from torch.optim.swa_utils import AveragedModel
from transformers import AutoModelForMaskedLM

from hf_mlp_fusion import BrokenCheckpointError, FusionConfig, calibrate_ntk, export_plain, fuse_model
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.modeling.find import find_ffns

CONFIG = FusionConfig(width=16, power=1)
SCALES = ("kernel_scales",)


def _matched(seed=0):
    model = tiny_model("bert")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + seed)
    return model, fuse_model(model, CONFIG, calibration=batches(model))


@pytest.fixture(scope="module")
def two():
    return _matched(0)[1], _matched(1)[1]


def test_a_state_dict_of_another_fusion_brings_its_scales_along(two):
    one, other = two
    assert not first_output(one).equal(first_output(other))
    state = other.state_dict()
    assert sum(name.endswith(SCALES) for name in state) == 3
    target = fuse_model(tiny_model("bert"), CONFIG, calibration=batches(tiny_model("bert")))
    target.load_state_dict(state)
    assert first_output(target).equal(first_output(other))
    plain = fuse_model(tiny_model("bert"), CONFIG)  # without scales of its own
    plain.load_state_dict(state)
    assert first_output(plain).equal(first_output(other))


def test_what_was_loaded_is_saved_and_exported(two, tmp_path):
    target = fuse_model(tiny_model("bert"), CONFIG)
    target.load_state_dict(two[1].state_dict())
    export_plain(target, tmp_path / "plain")
    target.save_pretrained(tmp_path / "fused")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "fused")
    assert first_output(again).equal(first_output(two[1]))
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(first_output(plain), first_output(again), rtol=1e-4, atol=1e-5)


def test_a_state_dict_without_scales_is_refused_where_there_are_some(two):
    plain = fuse_model(tiny_model("bert"), CONFIG)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) .*kernel_scales"):
        two[0].load_state_dict(plain.state_dict())


def test_weights_and_config_of_two_fusions_are_refused(two, tmp_path):
    for model, name in zip(two, ("one", "other"), strict=True):
        model.save_pretrained(tmp_path / name)
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "one" / "model.safetensors")
    with pytest.raises(BrokenCheckpointError, match=r"kernel_scales .* differ: they are of two fusions") as caught:
        AutoModelForMaskedLM.from_pretrained(tmp_path / "one")
    assert "\n" not in str(caught.value)
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    for ffn in config["mlp_fusion"]["ffns"].values():
        del ffn["scales"]
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BrokenCheckpointError, match="they are of two fusions"):
        AutoModelForMaskedLM.from_pretrained(tmp_path / "other")


def test_older_checkpoints_have_them_in_the_config_alone(two, tmp_path, caplog):
    two[0].save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if not name.endswith(SCALES)}
    assert len(kept) == len(state) - 3
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert first_output(again).equal(first_output(two[0]))
    assert {name for name in again.state_dict() if name.endswith(SCALES)} == state.keys() - kept.keys()
    assert "kernel_scales" not in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casts_leave_them(two, dtype, tmp_path):
    two[0].save_pretrained(tmp_path)
    wanted = [ffn.scaling.scales for ffn in find_ffns(two[0])]
    assert wanted[0] != (1.0, 1.0)
    for cast in (AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=dtype), _matched()[1].to(dtype)):
        assert [ffn.scaling.scales for ffn in find_ffns(cast)] == wanted
        for name, tensor in cast.state_dict().items():
            assert not name.endswith(SCALES) or tensor.dtype == torch.float32
        cast.save_pretrained(tmp_path / "again")
        again = AutoModelForMaskedLM.from_pretrained(tmp_path / "again")
        assert [ffn.scaling.scales for ffn in find_ffns(again)] == wanted


def test_averages_leave_them(two):
    average = AveragedModel(
        two[0],
        use_buffers=True,
        multi_avg_fn=lambda mean, new, _: [
            a.lerp_(b, 0.3) for a, b in zip(mean, new, strict=True) if a.is_floating_point()
        ],
    )
    for _ in range(5):
        average.update_parameters(two[0])
    for name, tensor in average.module.state_dict().items():
        if name.endswith(SCALES):
            assert tensor.equal(two[0].state_dict()[name])


def test_broken_ones_are_refused(two):
    state = dict(two[0].state_dict())
    name = next(name for name in state if name.endswith(SCALES))
    for value in (torch.nan, 0.0, -1.0):
        with pytest.raises(BrokenCheckpointError, match="kernel_scales holds what is no positive number"):
            two[0].load_state_dict({**state, name: torch.full_like(state[name], value)})


def test_matching_changes_the_output_by_rounding_alone():
    model = tiny_model("bert").double()
    fused = fuse_model(model, CONFIG)
    before = first_output(fused)
    rows = [{**batch, "labels": batch["input_ids"]} for batch in batches(model, count=2)]
    calibrate_ntk(fused, model, rows)
    torch.testing.assert_close(first_output(fused), before, rtol=1e-6, atol=1e-9)  # P times s2 is in float32


@pytest.mark.parametrize("name", ["llama", "mixtral", "esm", "phi3"])
def test_every_layout_carries_them(name, tmp_path):
    model = tiny_family_model(FAMILIES[name])
    fused = fuse_model(model, FusionConfig(width=32, targets="all"))
    for ffn in find_ffns(fused):
        ffn.scaling.scales = (1.5, 0.5, 1.25)
    other = fuse_model(model, FusionConfig(width=32, targets="all"))
    assert not output_of_any(other).equal(output_of_any(fused))
    other.load_state_dict(fused.state_dict())
    assert output_of_any(other).equal(output_of_any(fused))
    fused.save_pretrained(tmp_path)
    assert output_of_any(type(fused).from_pretrained(tmp_path)).equal(output_of_any(fused))
