"""Merging, which `experts_quality.py` compares with, does what its paper says, where that can be seen exactly."""

import pytest
import torch
from any_family import inputs_of_any, output_of_any, tiny_family_model
from fewer_experts import merge_experts

from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.modeling.find import find_ffns


def batches(model):
    return [inputs_of_any(model, batch=4, seed=seed) for seed in range(3)]


def blocks(model):
    return [layer.mlp for layer in model.model.layers]


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
