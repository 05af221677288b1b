"""The rivals that `experts_quality.py` compares with do what their papers say, where that can be seen exactly."""

import copy

import pytest
import torch
from any_family import inputs_of_any, output_of_any, tiny_family_model
from fewer_experts import merge_experts, reap

from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.modeling.find import find_ffns


def batches(model):
    return [inputs_of_any(model, batch=4, seed=seed) for seed in range(3)]


def blocks(model):
    return [layer.mlp for layer in model.model.layers]


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_reap_keeps_the_experts_of_the_largest_scores(name):
    """An expert that outputs next to nothing is dropped; without it the router chooses among the others."""
    model = tiny_family_model(FAMILIES[name])
    with torch.no_grad():
        for block in blocks(model):
            for parameter_name, parameter in block.experts.named_parameters():
                if parameter_name.startswith("down_proj"):
                    parameter[1] *= 1e-6
    smaller = reap(model, batches(model), 3)
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


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_experts_that_are_alike_are_merged_exactly(name):
    model = tiny_family_model(FAMILIES[name])
    with torch.no_grad():
        for block in blocks(model):
            for parameter in block.experts.parameters():
                parameter[3] = parameter[1]
    smaller = merge_experts(model, batches(model), 3)
    assert {ffn.expert for ffn in find_ffns(smaller)} == {0, 1, 2}
    torch.testing.assert_close(output_of_any(smaller), output_of_any(model), rtol=1e-5, atol=1e-7)


def test_merged_weights_are_means_by_frequency():
    model = tiny_family_model(FAMILIES["mixtral"])
    smaller = merge_experts(model, batches(model), 1)
    block = blocks(model)[0]
    counts = torch.zeros(4)

    def count(_, args):
        counts.add_(torch.bincount(args[1].flatten(), minlength=4))

    hook = block.experts.register_forward_pre_hook(count)
    with torch.no_grad():
        for batch in batches(model):
            model(**batch)
    hook.remove()
    expected = ((counts / counts.sum()).view(4, 1, 1) * block.experts.down_proj).sum(0)
    torch.testing.assert_close(blocks(smaller)[0].experts.down_proj[0], expected)
