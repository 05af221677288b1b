"""What every method must do: run, have the parameters it may have, save, load in a fresh process, fine-tune."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import first_output, tiny_model
from safetensors.torch import load_file

from hf_mlp_fusion import FusionConfig, FusionConfigError, UnsupportedModelError, fuse_model
from hf_mlp_fusion.baselines import METHODS, reduce_model
from hf_mlp_fusion.measure import model_size, output_error
from hf_mlp_fusion.modeling.find import find_ffns

CONFIG = FusionConfig(width=16, targets="all")
FAMILIES = ["bert", "gpt2", "switch_transformers"]
AUTO = {"bert": "AutoModelForMaskedLM", "gpt2": "AutoModelForCausalLM"}
AUTO["switch_transformers"] = "AutoModelForSeq2SeqLM"
DATA_FREE = ["fusion", "fusion_kmeans", "cluster", "svd", "sketch", "mmd", "prune", "ntk_sap", "layer_drop"]
FFN_WISE = [name for name in DATA_FREE if name != "layer_drop"]
SCORED = ["flap", "wanda", "compact", "sdmprune", "nirvana"]  # test_scored.py
CALIBRATED = [
    name for name in METHODS if name not in (*DATA_FREE, *SCORED, "reap")
]  # which is for mixtures: test_reap.py
CASES = [(method, family) for method in FFN_WISE for family in FAMILIES]
CASES += [("layer_drop", "bert"), ("layer_drop", "gpt2")]


def test_all_load_in_a_fresh_process(tmp_path):
    expected, jobs = {}, []
    for method, family in CASES:
        if method == "layer_drop":
            continue
        small = reduce_model(tiny_model(family), CONFIG, method)
        folder, out = tmp_path / f"{method}-{family}", tmp_path / f"{method}-{family}.safetensors"
        small.save_pretrained(folder)
        expected[out] = first_output(small)
        jobs.append({"auto": AUTO[family], "folder": str(folder), "out": str(out), "kwargs": {}})
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).parents[1] / "fresh_process.py"
    subprocess.run([sys.executable, script, tmp_path / "jobs.json"], check=True)
    for out, output in expected.items():
        assert torch.isfinite(output).all()
        torch.testing.assert_close(load_file(out)["output"], output, rtol=0, atol=1e-6)


def test_a_model_with_dropped_layers_needs_no_plugin(tmp_path):
    small = reduce_model(tiny_model("gpt2"), CONFIG, "layer_drop")
    small.save_pretrained(tmp_path)
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    torch.testing.assert_close(first_output(again), first_output(small), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("method", "family"), CASES)
def test_a_step_of_adam_lowers_the_loss(method, family):
    small = reduce_model(tiny_model(family), CONFIG, method)  # in eval mode: no dropout
    ids = torch.arange(2, 20)[None]
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = small(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("family", ["bert", "gpt2", pytest.param("switch_transformers", marks=pytest.mark.every)])
def test_all_have_the_parameters_of_fusion(family):
    model = tiny_model(family)
    fused = model_size(fuse_model(model, CONFIG)).ffn_parameters
    for method in FFN_WISE:
        small = reduce_model(model, CONFIG, method)
        counted = model_size(small)
        if method == "svd":
            assert 0.7 * fused < counted.ffn_parameters <= fused  # a rank of a tiny matrix is a large step
        else:
            assert counted.ffn_parameters == fused
        assert small.fusion_report.parameters_after == counted.parameters
        assert sum(ffn.parameters_after for ffn in small.fusion_report.ffns) == counted.ffn_parameters


@pytest.mark.parametrize("method", FFN_WISE)
def test_the_model_is_untouched_and_the_result_repeatable(method):
    model = tiny_model("gpt2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one, two = (reduce_model(model, CONFIG, method) for _ in range(2))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for ffn in find_ffns(model) for module in ffn.host.modules())
    for name, tensor in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], tensor), name
        assert name not in before or tensor.data_ptr() != model.state_dict()[name].data_ptr()


@pytest.mark.parametrize("method", ["fusion", "fusion_kmeans", "cluster", "mmd", "prune", "ntk_sap"])
@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_all_units_changes_nothing(method, family):
    model = tiny_model(family).double()
    small = reduce_model(model, FusionConfig(width=64, targets="all"), method)
    torch.testing.assert_close(first_output(small), first_output(model), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["cluster", "svd", "prune"])
def test_any_head_and_dtype(method):
    model = tiny_model("bert", transformers.BertForSequenceClassification).to(torch.bfloat16)
    small = reduce_model(model, CONFIG, method)
    assert isinstance(small, transformers.BertForSequenceClassification)
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}
    assert torch.isfinite(first_output(small)).all()


def test_frozen_weights_stay_frozen():
    model = tiny_model("gpt2")
    for ffn in find_ffns(model):
        ffn.host.get_submodule(ffn.spec.up).requires_grad_(False)
    for method in ("prune", "svd"):
        for ffn in find_ffns(reduce_model(model, CONFIG, method)):
            assert not any(part.requires_grad for part in ffn.host.get_submodule(ffn.spec.up).parameters())
            assert all(part.requires_grad for part in ffn.host.get_submodule(ffn.spec.down).parameters())


@pytest.mark.parametrize("method", CALIBRATED)
def test_calibrated_methods(method):
    model = tiny_model("gpt2")
    ids = torch.randint(2, 90, (6, 8, 20), generator=torch.Generator().manual_seed(0))
    calibration = [{"input_ids": batch, "labels": batch} for batch in ids]
    config = FusionConfig(width=0.25, multiple_of=4)
    small, plain = (reduce_model(model, config, name, calibration=calibration) for name in (method, "fusion"))
    assert model_size(small).parameters == model_size(plain).parameters
    errors = [output_error(model, other, calibration).mean for other in (small, plain)]
    assert errors[0] < errors[1]
    if method != "fusion_sampled":
        with pytest.raises(FusionConfigError, match="needs calibration data"):
            reduce_model(model, config, method)


def test_a_search_for_widths_needs_a_share():
    with pytest.raises(FusionConfigError, match="write a share"):
        reduce_model(tiny_model("gpt2"), FusionConfig(width=16), "fusion_auto", calibration=[{}])


def test_unknown_methods_and_fused_models_are_refused():
    with pytest.raises(FusionConfigError, match=r"no method 'magic'; the methods are fusion, .*layer_drop"):
        reduce_model(tiny_model("bert"), CONFIG, "magic")
    fused = fuse_model(tiny_model("bert"), CONFIG)
    for method in METHODS:
        with pytest.raises(UnsupportedModelError, match="fused already"):
            reduce_model(fused, CONFIG, method)
