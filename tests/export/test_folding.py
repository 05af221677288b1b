"""P in the weights and out again."""

import copy

import pytest
import torch
import transformers
from conftest import TINY_CONFIGS, first_output, model_inputs, repeat_units, tiny_model

from hf_mlp_fusion import (
    FusedMLP,
    FusionConfig,
    FusionConfigError,
    UnsupportedModelError,
    calibrate_ntk,
    fold,
    fuse_model,
    unfold,
)
from hf_mlp_fusion.modeling.find import find_ffns
from hf_mlp_fusion.recipe.section import FusionSection

CONFIG = FusionConfig(width=24, targets="all")
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def with_scales(model, inner=1.7, outer=0.6):
    """The same weights under other s1 and s2, as the NTK calibration sets them."""
    scales = {}
    for ffn in find_ffns(model):
        if ffn.is_fused:
            ffn.owner.scaling.inner_scale, ffn.owner.scaling.outer_scale = scales[ffn.name] = (inner, outer)
    model.config.mlp_fusion = FusionSection.from_dict(model.config.mlp_fusion).with_scales(scales).to_dict()
    return model


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("family", sorted(TINY_CONFIGS))
def test_folding_keeps_the_output_and_leaves_stock_modules(family):
    model = with_scales(fuse_model(tiny_model(family), CONFIG)).double()
    expected = first_output(model)
    fold(model)
    torch.testing.assert_close(first_output(model), expected, rtol=1e-12, atol=1e-12)
    stock = {type(module) for module in tiny_model(family).modules()}
    assert {type(module) for module in model.modules()} - stock == {type(model)}
    assert not [name for name in model.state_dict() if "cluster_sizes" in name]


@pytest.mark.parametrize("family", sorted(TINY_CONFIGS))
def test_unfolding_is_the_inverse(family):
    model = with_scales(fuse_model(tiny_model(family), CONFIG))
    before, shown, config = snapshot(model), repr(model), model.config.to_dict()
    fold(model)
    assert model.config.to_dict() != config
    unfold(model)
    assert (repr(model), model.config.to_dict()) == (shown, config)
    assert model.folded_scalings is None
    after = snapshot(model)
    assert list(after) == list(before)
    sizes = [name for name in before if name.endswith("cluster_sizes")]
    assert sizes
    assert all(torch.equal(after[name], before[name]) for name in sizes)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_weights_come_back_to_the_last_bit_but_one(dtype):
    model = with_scales(fuse_model(tiny_model("gpt2", n_inner=512), FusionConfig(width=128))).to(dtype)
    before = snapshot(model)
    fold(model)
    unfold(model)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            assert (tensor.view(INTEGERS[dtype]) - before[name].view(INTEGERS[dtype])).abs().max() <= 1, name


def test_powers_of_two_come_back_exactly():
    stock = tiny_model("gpt2")
    repeat_units(stock, 4)
    model = with_scales(fuse_model(stock, FusionConfig(width=16)), inner=2.0, outer=0.5)
    assert {tuple(block.mlp.cluster_sizes.tolist()) for block in model.transformer.h} == {(4,) * 16}
    before, expected = snapshot(model), first_output(model)
    fold(model)
    assert not torch.equal(model.transformer.h[0].mlp.c_proj.weight, before["transformer.h.0.mlp.c_proj.weight"])
    unfold(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(first_output(model), expected)


def test_calibrated_models_fold():
    stock = tiny_model("roberta")
    model = fuse_model(stock, CONFIG)
    calibrate_ntk(model, stock, [model_inputs(stock) | {"labels": model_inputs(stock)["input_ids"]}])
    expected = first_output(model)
    fold(model)
    torch.testing.assert_close(first_output(model), expected, rtol=1e-5, atol=1e-6)


def test_gated_ffns_fold():
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=99, mlp_bias=True, **sizes)
    model = with_scales(fuse_model(transformers.LlamaForCausalLM(config), CONFIG)).double()
    expected = first_output(model)
    fold(model)
    torch.testing.assert_close(first_output(model), expected, rtol=1e-12, atol=1e-12)


def test_a_folded_model_trains_and_unfolds_as_trained():
    model = with_scales(fuse_model(tiny_model("bert"), CONFIG))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fold(model)
    inputs = model_inputs(model)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    optimizer.step()
    expected = first_output(model)
    twin = copy.deepcopy(model)
    unfold(model)
    torch.testing.assert_close(first_output(model), expected, rtol=1e-5, atol=1e-6)
    unfold(twin)
    assert torch.equal(first_output(twin), first_output(model))
    scaling = next(module for module in twin.modules() if isinstance(module, FusedMLP)).scaling
    scaling.cluster_sizes.fill_(1)  # the twin has a P of its own
    assert not torch.equal(first_output(twin), first_output(model))


def test_a_folded_model_is_saved_and_loaded_without_p(tmp_path):
    model = with_scales(fuse_model(tiny_model("gpt2"), FusionConfig(width=16, layers="last:2")))
    fold(model)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, disable_mmap=True)
    assert type(loaded) is type(model)
    assert torch.equal(first_output(loaded), first_output(model))
    with pytest.raises(UnsupportedModelError, match="was not folded here"):
        unfold(loaded)


def test_what_cannot_be_folded():
    stock = tiny_model("gpt2")
    for verb in (fold, unfold):
        with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel"):
            verb(stock)
    model = fuse_model(stock, CONFIG)
    with pytest.raises(UnsupportedModelError, match="was not folded here"):
        unfold(model)
    fold(model)
    with pytest.raises(UnsupportedModelError, match="no P to fold: it is not fused, or folded already"):
        fold(model)
    model.peft_config = {"default": None}
    with pytest.raises(UnsupportedModelError, match="merge or delete them"):
        unfold(model)


def test_what_does_not_fit_the_dtype_changes_nothing():
    model = fuse_model(tiny_model("gpt2"), CONFIG)
    with torch.no_grad():
        model.transformer.h[2].mlp.c_proj.weight.fill_(40_000.0)
    model = model.half()
    before = snapshot(model)
    with pytest.raises(FusionConfigError, match=r"h\.2\.mlp is too large for float16: take bfloat16 or float32"):
        fold(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    fold(model.float())
