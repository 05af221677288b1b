import copy
import warnings

import pytest
import torch
import transformers
from any_family import tiny_family_model
from conftest import TINY_CONFIGS, TINY_HEADS, first_output, model_inputs, repeat_units, tiny_model

from hf_mlp_fusion import (
    FusedMLP,
    FusionConfig,
    FusionConfigError,
    FusionWarning,
    UnsupportedModelError,
    families,
    fuse_model,
)
from hf_mlp_fusion.families.compat import auto_model_classes
from hf_mlp_fusion.modeling.find import find_ffns

FAMILIES = sorted(TINY_CONFIGS)
CONFIG = FusionConfig(width=16, targets="all")


def heads(family):
    """Every class that an Auto class gives for the family's stock config."""
    found = {
        mapping[type(TINY_CONFIGS[family])]
        for _, mapping in auto_model_classes()
        if type(TINY_CONFIGS[family]) in mapping
    }
    return sorted(found, key=lambda head: head.__name__)


HEADS = [(family, head) for family in FAMILIES for head in heads(family)]


def fused_ffns(model):
    return [module for module in model.modules() if isinstance(module, FusedMLP)]


@pytest.mark.parametrize(("family", "head"), HEADS, ids=[head.__name__ for _, head in HEADS])
def test_every_head_fuses(family, head):
    model = tiny_model(family, head)
    fused = fuse_model(model, CONFIG)
    assert type(fused).__name__ == f"Fused{head.__name__}"
    assert isinstance(fused, head)
    assert {ffn.width for ffn in fused_ffns(fused)} == {16}
    assert len(fused_ffns(fused)) == len(list(find_ffns(model)))
    assert torch.isfinite(first_output(fused)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_full_width_is_the_identity(family):
    model = tiny_model(family)
    fused = fuse_model(model, FusionConfig(width=64, targets="all"))
    assert torch.equal(first_output(fused), first_output(model))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("clustering", ["ward", "kmeans"])
def test_duplicated_units_fuse_exactly(family, clustering):
    model = tiny_model(family)
    repeat_units(model, 4)
    fused = fuse_model(model, FusionConfig(width=16, targets="all", clustering=clustering))
    torch.testing.assert_close(first_output(fused), first_output(model), rtol=1e-5, atol=1e-5)
    assert {tuple(ffn.cluster_sizes.tolist()) for ffn in fused_ffns(fused)} == {(4,) * 16}
    assert max(report.inertia_share for report in fused.fusion_report.ffns) < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_the_original_is_untouched_and_shares_no_memory(family):
    model = tiny_model(family)
    before = copy.deepcopy(model.state_dict())
    config = model.config.to_dict()
    fused = fuse_model(model, CONFIG)
    with torch.no_grad():
        for tensor in fused.state_dict().values():
            tensor.fill_(7)
    assert model.config.to_dict() == config
    assert type(model) is TINY_HEADS[family]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_in_place_gives_the_same_and_empties_the_original(family):
    expected = fuse_model(tiny_model(family), CONFIG)
    model = tiny_model(family)
    kept = model.get_input_embeddings().weight.data_ptr()
    fused = fuse_model(model, CONFIG, inplace=True)
    assert fused.get_input_embeddings().weight.data_ptr() == kept
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(first_output(fused), first_output(expected))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("clustering", ["ward", "kmeans"])
def test_same_input_same_bits(family, clustering):
    config = FusionConfig(width=16, targets="all", clustering=clustering)
    first, second = (fuse_model(tiny_model(family), config).state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_mode_dtype_and_frozen_parameters_are_kept():
    model = tiny_model("gpt2").to(torch.bfloat16).train()
    model.transformer.wte.requires_grad_(False)
    model.generation_config.max_new_tokens = 7
    fused = fuse_model(model, CONFIG)
    assert fused.training
    assert fused.dtype == torch.bfloat16
    assert not fused.transformer.wte.weight.requires_grad
    assert fused.transformer.wpe.weight.requires_grad
    assert fused.generation_config.max_new_tokens == 7
    assert fused.lm_head.weight is fused.transformer.wte.weight
    assert {ffn.cluster_sizes.dtype for ffn in fused_ffns(fused)} == {torch.int32}


def test_conv1d_equals_its_linear_twin():
    """GPT-2 keeps its projections transposed; the same weights in BERT's layout fuse to the same numbers."""
    gpt2, bert = tiny_model("gpt2"), tiny_model("bert")
    twin = next(find_ffns(bert))
    weights = next(find_ffns(gpt2)).read()
    with torch.no_grad():
        twin.host.intermediate.dense.weight.copy_(weights.up)
        twin.host.intermediate.dense.bias.copy_(weights.up_bias)
        twin.host.output.dense.weight.copy_(weights.down)
    config = FusionConfig(width=16, layers=[0])
    fused_gpt2, fused_bert = (next(find_ffns(fuse_model(model, config))) for model in (gpt2, bert))
    assert torch.equal(fused_gpt2.read().up, fused_bert.read().up)
    assert torch.equal(fused_gpt2.read().up_bias, fused_bert.read().up_bias)
    assert torch.equal(fused_gpt2.read().down, fused_bert.read().down)
    assert torch.equal(fused_gpt2.owner.cluster_sizes, fused_bert.owner.cluster_sizes)


def test_widths_by_pattern():
    fused = fuse_model(tiny_model("gpt2"), FusionConfig(width={"h.0.mlp": 16, "h.[12].mlp": 0.5}, multiple_of=4))
    assert [ffn.width for ffn in fused_ffns(fused)] == [16, 32, 32]
    assert fused.config.mlp_fusion["ffns"]["h.1.mlp"] == {"width": 32, "original_width": 64}
    assert fused.config.n_inner is None  # the stock fields keep the original width


def test_report_accounts_for_every_ffn():
    model = tiny_model("switch_transformers")
    fused = fuse_model(model, FusionConfig(width=0.25, layers="last:2", multiple_of=8))
    report = fused.fusion_report
    names = {ffn.name for ffn in find_ffns(model)}
    assert {item.name for item in report.ffns} | {item.name for item in report.skipped} == names
    assert len(report.ffns) + len(report.skipped) == len(names)
    assert {item.reason for item in report.skipped} == {"not among layers='last:2'", "dense, and targets='auto'"}
    assert {item.width for item in report.ffns} == {16}
    lost = sum(item.parameters_before - item.parameters_after for item in report.ffns)
    assert report.parameters_before - report.parameters_after == lost == 48 * 32 * len(report.ffns) // 2 * 2
    assert report.parameters_after == sum(p.numel() for p in fused.parameters())
    assert report.bytes_before - report.bytes_after == 4 * lost - 4 * 16 * len(report.ffns)
    assert report.ffn_parameters == sum(ffn.parameter_count(64) for ffn in find_ffns(model))
    assert report.fused_share == pytest.approx(8 / 20)


@pytest.mark.parametrize(
    ("config", "mend"),
    [
        (FusionConfig(width=65), "width=65 is more than the 64 units that h.0.mlp has; write at most 64"),
        (FusionConfig(width=0.25), "rounded to a multiple of 64, is all of its 64 units.*Lower multiple_of"),
        (FusionConfig(width=8, layers="last:4"), "the model has 3 layers"),
        (FusionConfig(width={"encoder.*": 8}), "names here are 'h.0.mlp' to 'h.2.mlp'"),
        (FusionConfig(width={"*": 8, "h.0.mlp": 9}), "an earlier pattern took it"),
        (FusionConfig(width=8, targets="experts"), "the model has no experts"),
    ],
)
def test_recipes_that_do_not_fit_the_model(config, mend):
    with pytest.raises(FusionConfigError, match=mend):
        fuse_model(tiny_model("gpt2"), config)


@pytest.mark.parametrize("width", [15, 0.1])
def test_narrow_widths_warn(width):
    with pytest.warns(FusionWarning) as caught:
        fused = fuse_model(tiny_model("gpt2"), FusionConfig(width=width, multiple_of=1))
    messages = [str(item.message) for item in caught]
    assert "3 of 3 FFNs become narrower than the hidden size (16)" in messages[0]
    assert "3 of 3 FFNs keep less than a quarter" in messages[1]
    assert fused.fusion_report.warnings == messages


def test_what_was_narrower_before_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fuse_model(tiny_model("bert", intermediate_size=12), FusionConfig(width=8, multiple_of=1))


def test_a_quarter_at_the_hidden_size_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fuse_model(tiny_model("bert"), CONFIG)


def test_nan_weights_are_refused():
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[3, 5] = float("nan")
    with pytest.raises(FusionConfigError, match=r"h\.1\.mlp hold NaN"):
        fuse_model(model, CONFIG)


def test_what_cannot_be_fused_is_refused():
    fused = fuse_model(tiny_model("gpt2"), CONFIG)
    with pytest.raises(UnsupportedModelError, match=r"fused already.*start from the original"):
        fuse_model(fused, CONFIG)
    with pytest.raises(
        UnsupportedModelError, match=r"type 'fnet' are not supported.*hf-mlp-fusion families.*register_family"
    ):
        fuse_model(transformers.FNetModel(transformers.FNetConfig(vocab_size=9, hidden_size=8)), CONFIG)
    with pytest.raises(UnsupportedModelError, match="not a Linear"):
        fuse_model(torch.nn.Linear(2, 2), CONFIG)
    with torch.device("meta"), pytest.raises(UnsupportedModelError, match="meta device"):
        fuse_model(transformers.GPT2Model(TINY_CONFIGS["gpt2"]), CONFIG)


def test_peft_models_are_refused():
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(tiny_model("gpt2"), LoraConfig(target_modules=["c_proj"], fan_in_fan_out=True))
    with pytest.raises(UnsupportedModelError, match="merge_and_unload"):
        fuse_model(wrapped, CONFIG)
    adapted = wrapped.get_base_model()
    adapted.peft_config = wrapped.peft_config  # as `model.add_adapter` leaves it
    with pytest.raises(UnsupportedModelError, match="merge or delete"):
        fuse_model(adapted, CONFIG)


def test_users_own_subclasses_fuse():
    class MyClassifier(transformers.RobertaForSequenceClassification):
        pass

    fused = fuse_model(tiny_model("roberta", MyClassifier), CONFIG)
    assert isinstance(fused, MyClassifier)
    assert torch.isfinite(first_output(fused)).all()
    assert model_inputs(fused)


def test_switch_equals_a_loop_with_the_scaling():
    """Each expert by hand, with P, on the tokens that the router sends to it."""
    fused = fuse_model(tiny_model("switch_transformers"), CONFIG)
    sparse = fused.encoder.block[1].layer[1].mlp
    hidden = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        chosen, probability, _ = sparse.router(hidden)
        expected = torch.zeros_like(hidden)
        for row in range(2):
            for token in range(9):
                x = hidden[row, token]
                expert = sparse.experts[f"expert_{int(chosen[row, token].argmax())}"]
                unit = torch.relu(expert.wi.weight @ x) * expert.cluster_sizes
                expected[row, token] = probability[row, token] * (expert.wo.weight @ unit)
        torch.testing.assert_close(sparse(hidden), expected)


def test_switch_routers_are_untouched():
    model = tiny_model("switch_transformers")
    fused = fuse_model(model, CONFIG)
    routers = [name for name in model.state_dict() if ".router." in name]
    assert len(routers) == 4
    assert all(torch.equal(model.state_dict()[name], fused.state_dict()[name]) for name in routers)


@pytest.mark.parametrize(("family", "said"), [("gpt2", True), ("llama", True), ("vit", False), ("t5", False)])
def test_fusion_without_data_says_what_it_costs(family, said):
    model = tiny_family_model(families.FAMILIES[family])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fused = fuse_model(model, FusionConfig(width=0.5, multiple_of=1))
    assert any("ruins causal and gated models" in str(item.message) for item in caught) == said
    assert any("without calibration data" in line for line in fused.fusion_report.warnings) == said
