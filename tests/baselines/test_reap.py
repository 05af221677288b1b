"""Experts dropped: those with the smallest scores, in any family, and a stock model is left."""

import copy
import dataclasses

import pytest
import torch
from any_family import WIDTH, inputs_of_any, output_of_any, tiny_family_model
from conftest import tiny_model

from hf_mlp_fusion import FusionConfig, FusionConfigError, UnsupportedModelError
from hf_mlp_fusion.baselines import reduce_model
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.families.catalogue import experts
from hf_mlp_fusion.modeling.find import find_ffns

THREE = FusionConfig(width=3 * WIDTH // 4)
OFTEN = ("mixtral", "gpt_oss", "deepseek_v3", "ernie4_5_moe", "minimax_m2", "llama4_text")
every = pytest.mark.parametrize(
    "name",
    [
        pytest.param(family.model_type, marks=[] if family.model_type in OFTEN else pytest.mark.every)
        for family in experts.FAMILIES
    ],
)


def batches(model):
    return [inputs_of_any(model, batch=4, seed=seed) for seed in range(3)]


def blocks(model):
    return [layer.mlp for layer in model.model.layers]


def experts_of(model):
    return [ffn for ffn in find_ffns(model) if ffn.spec.stacked]


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_reap_keeps_the_experts_of_the_largest_scores(name):
    """An expert that outputs next to nothing is dropped; without it the router chooses among the others."""
    model = tiny_family_model(FAMILIES[name])
    with torch.no_grad():
        for block in blocks(model):
            for parameter_name, parameter in block.experts.named_parameters():
                if parameter_name.startswith("down_proj"):
                    parameter[1] *= 1e-6
    smaller = reduce_model(model, THREE, "reap", batches(model))
    assert {ffn.expert for ffn in find_ffns(smaller)} == {0, 1, 2}
    for block, own in zip(blocks(model), blocks(smaller), strict=True):
        assert own.experts.down_proj.equal(block.experts.down_proj[[0, 2, 3]])
        router, left = (b.gate if hasattr(b, "gate") else b.router for b in (block, own))
        assert left.weight.equal(router.weight[[0, 2, 3]])
    by_hand = copy.deepcopy(model)
    for block in blocks(by_hand):
        router = block.gate if hasattr(block, "gate") else block.router
        weight = router.weight.detach().clone()
        router.weight = torch.nn.Parameter(weight[[0, 2, 3]])
        if getattr(router, "bias", None) is not None:
            router.bias = torch.nn.Parameter(router.bias.detach()[[0, 2, 3]])
        renumber = torch.tensor([0, 2, 3])
        router.register_forward_hook(lambda _, args, out, new=renumber: (out[0], out[1], new[out[2]]))
    torch.testing.assert_close(output_of_any(smaller), output_of_any(by_hand), rtol=1e-5, atol=1e-7)


@every
def test_any_family(name, tmp_path):
    """A model of the stock class, which its stock class loads."""
    model = tiny_family_model(FAMILIES[name])
    smaller = reduce_model(model, THREE, "reap", batches(model))
    assert type(smaller) is type(model)
    assert {ffn.expert for ffn in experts_of(model)} == {0, 1, 2, 3}
    assert {ffn.expert for ffn in experts_of(smaller)} == {0, 1, 2}
    before, after = model.state_dict(), smaller.state_dict()
    assert list(before) == list(after)
    left = {}
    for old in experts_of(model):
        for new in experts_of(smaller):
            if old.entry == new.entry and old.read().down.equal(new.read().down):
                left.setdefault(f"{old.block}.", []).append(old.expert)
    for tensor_name, tensor in after.items():
        if tensor.shape == before[tensor_name].shape:
            assert tensor.equal(before[tensor_name])
            continue
        kept = torch.tensor(next(kept for block, kept in left.items() if tensor_name.startswith(block)))
        assert tensor.equal(before[tensor_name].index_select(before[tensor_name].shape.index(4), kept))
    smaller.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.num_experts_per_tok == 2
    assert output_of_any(again).equal(output_of_any(smaller))


@every
def test_all_experts_are_the_model(name):
    model = tiny_family_model(FAMILIES[name])
    same = reduce_model(model, FusionConfig(width=WIDTH), "reap", batches(model))
    assert output_of_any(same).equal(output_of_any(model))


def test_padding_counts_for_nothing():
    model = tiny_family_model(FAMILIES["mixtral"])
    plain = batches(model)
    padded = [
        {
            "input_ids": torch.cat([batch["input_ids"], torch.full((4, 30), 7)], 1),
            "attention_mask": torch.tensor([[1] * batch["input_ids"].shape[1] + [0] * 30] * 4),
        }
        for batch in plain
    ]
    kept = [reduce_model(model, THREE, "reap", given).state_dict() for given in (plain, padded)]
    assert all(tensor.equal(kept[1][name]) for name, tensor in kept[0].items())


def test_fewer_experts_than_a_token_goes_to():
    model = tiny_family_model(FAMILIES["mixtral"])
    one = reduce_model(model, FusionConfig(width=0.25, multiple_of=1), "reap", batches(model))
    assert (one.config.num_local_experts, one.config.num_experts_per_tok) == (1, 1)
    assert torch.isfinite(output_of_any(one)).all()


def test_what_it_cannot_do():
    with pytest.raises(UnsupportedModelError, match="kept as 3-D parameters, and BertForMaskedLM has none"):
        reduce_model(tiny_model("bert"), THREE, "reap", [{}])
    grouped = tiny_family_model(FAMILIES["deepseek_v3"], n_group=2, topk_group=1)
    with pytest.raises(UnsupportedModelError, match=r"groups of experts \(n_group=2\)"):
        reduce_model(grouped, THREE, "reap", batches(grouped))
    model = tiny_family_model(FAMILIES["qwen2_moe"])
    with pytest.raises(FusionConfigError, match="write targets='experts'"):
        reduce_model(model, dataclasses.replace(THREE, targets="all"), "reap", batches(model))
    for recipe in (
        dataclasses.replace(THREE, layers="last:1"),
        FusionConfig(width={"layers.0.*": 16, "layers.1.*": 48}),
    ):
        with pytest.raises(FusionConfigError, match="same number of experts in every layer"):
            reduce_model(model, recipe, "reap", batches(model))
    with pytest.raises(FusionConfigError, match="needs calibration data"):
        reduce_model(model, THREE, "reap")
