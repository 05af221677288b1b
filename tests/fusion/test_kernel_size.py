"""NTK calibration: the Adam kernels of a fused model get the original's size, and nothing else changes."""

import pytest
import torch
import transformers
from conftest import TINY_CONFIGS, first_output, model_inputs, tiny_model
from tiny_batches import batches

from hf_mlp_fusion import FusionConfig, UnsupportedModelError, calibrate_ntk, fuse_model
from hf_mlp_fusion.fusion.calibration import first_rows
from hf_mlp_fusion.measure import ntk_error

FAMILIES = sorted(TINY_CONFIGS)
CLASSIFIER = transformers.BertForSequenceClassification


@pytest.mark.parametrize("family", FAMILIES)
def test_kernel_sizes_match_and_outputs_stay(family, tmp_path):
    model = tiny_model(family)
    data = first_rows(model, batches(model), 8)
    fused = fuse_model(model, FusionConfig(width=16, power=1, ntk="none"), calibration=batches(model))
    before = first_output(fused)
    scales = calibrate_ntk(fused, model, data)
    torch.testing.assert_close(first_output(fused), before, rtol=1e-4, atol=1e-5)
    again = calibrate_ntk(fused, model, data)  # matched already: nothing moves
    for name, pair in scales.items():
        assert pair == pytest.approx(again[name], rel=1e-3)
        assert pair != (1.0, 1.0) or "expert" in name
        assert fused.config.mlp_fusion["ffns"][name]["scales"] == list(again[name])
    fused.save_pretrained(tmp_path)
    reloaded = type(fused).from_pretrained(tmp_path, disable_mmap=True)
    assert torch.equal(first_output(reloaded), first_output(fused))


def test_matching_lowers_the_ntk_error():
    torch.manual_seed(0)
    model = tiny_model("bert", CLASSIFIER)
    data = batches(model, count=40)
    raw = fuse_model(model, FusionConfig(width=16, power=1, ntk="none"), calibration=data)
    matched = fuse_model(model, FusionConfig(width=16, power=1), calibration=data)
    held = batches(model, count=3, length=10)
    assert ntk_error(model, matched, held).total.relative < 0.7 * ntk_error(model, raw, held).total.relative
    assert matched.fusion_report.recipe["ntk"] == "match"


@pytest.mark.parametrize("labels", [1, 2])
def test_the_kernels_of_every_head_are_matched(labels):
    model = tiny_model("bert", CLASSIFIER, num_labels=labels)
    fused = fuse_model(model, FusionConfig(width=16, power=1), calibration=batches(model))
    assert all(1.0 not in ffn["scales"] for ffn in fused.config.mlp_fusion["ffns"].values())


def test_kernels_that_no_gradient_reaches_keep_their_size_and_that_is_said(caplog):
    model = tiny_model("bert", CLASSIFIER)
    torch.nn.init.zeros_(model.classifier.weight)
    fused = fuse_model(model, FusionConfig(width=16, power=1), calibration=batches(model))
    assert all(ffn["scales"] == [1.0, 1.0] for ffn in fused.config.mlp_fusion["ffns"].values())
    assert "no gradient reached encoder.layer.0" in caplog.text


def test_matching_without_a_refit_leaves_the_fusion_alone():
    """Calibration data that serve the kernels only must not move a bias."""
    model = tiny_model("bert")
    plain = fuse_model(model, FusionConfig(width=16, power=1))
    config = FusionConfig(width=16, selection="clusters", refit="none", ntk="match", power=1)
    matched = fuse_model(model, config, calibration=batches(model))
    assert {(report.method, report.tokens) for report in matched.fusion_report.ffns} == {("clusters", 0)}
    assert all("scales" in ffn for ffn in matched.config.mlp_fusion["ffns"].values())
    torch.testing.assert_close(first_output(matched), first_output(plain), rtol=1e-4, atol=1e-5)


def test_folded_scales_are_in_the_scaling_module():
    model = tiny_model("gpt2")
    fused = fuse_model(model, FusionConfig(width=16, power=1), calibration=batches(model))
    scaling = fused.transformer.h[0].mlp.scaling
    hidden = torch.randn(3, 16)
    expected = torch.nn.functional.gelu(hidden * scaling.inner_scale, approximate="tanh")
    expected = expected * scaling.cluster_sizes * scaling.outer_scale
    torch.testing.assert_close(scaling(hidden), expected)
    assert scaling.inner_scale != 1.0


def test_calibrate_ntk_refuses_other_models():
    fused = fuse_model(tiny_model("gpt2"), FusionConfig(width=16, power=1))
    data = first_rows(fused, [model_inputs(fused)])
    with pytest.raises(UnsupportedModelError, match="has no fused FFN"):
        calibrate_ntk(tiny_model("gpt2"), tiny_model("gpt2"), data)
    with pytest.raises(UnsupportedModelError, match=r"no FFN 'h\.0\.mlp': it is another model"):
        calibrate_ntk(fused, tiny_model("bert"), data)


@pytest.mark.parametrize("scales", [[1.0], [0.0, 1.0], [-1.0, 1.0], ["a", 1.0], [float("inf"), 1.0], [True, 1.0], 3])
def test_broken_scales_are_refused(scales):
    from hf_mlp_fusion import BrokenCheckpointError
    from hf_mlp_fusion.recipe.section import FusionSection

    section = fuse_model(tiny_model("gpt2"), FusionConfig(width=16, power=1)).config.mlp_fusion
    section["ffns"]["h.0.mlp"]["scales"] = scales
    with pytest.raises(BrokenCheckpointError, match="two positive numbers"):
        FusionSection.from_dict(section)
