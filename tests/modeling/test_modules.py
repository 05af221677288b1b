import pytest
import torch
from conftest import tiny_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_mlp_fusion import BrokenCheckpointError, ClusterScaling, FusedMLP
from hf_mlp_fusion.modeling.find import find_ffns
from hf_mlp_fusion.modeling.forms import FORMS
from hf_mlp_fusion.modeling.modules import check_cluster_sizes, fused_mlp_class
from hf_mlp_fusion.modeling.parts import narrow_projection


def test_scaling_multiplies_the_activation():
    scaling = ClusterScaling(nn.ReLU(), width=3, original_width=7)
    assert scaling.cluster_sizes.tolist() == [3, 2, 2]
    assert scaling(torch.tensor([[-1.0, 1.0, 2.0]])).tolist() == [[0.0, 2.0, 4.0]]
    assert scaling(torch.ones(3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_fused_mlp_is_both_and_the_class_is_made_once():
    ffn = next(find_ffns(tiny_model("gpt2")))
    stock = type(ffn.host)
    FORMS["fused"].install(ffn, 16, 64)
    assert isinstance(ffn.host, FusedMLP)
    assert isinstance(ffn.host, stock)
    assert type(ffn.host) is fused_mlp_class(stock)
    assert (ffn.host.width, ffn.host.original_width, ffn.width, ffn.hidden_size) == (16, 64, 16, 16)


@pytest.mark.parametrize("bias", [True, False])
def test_narrow_projection_keeps_kind_bias_dtype(bias):
    linear = nn.Linear(4, 6, bias=bias, dtype=torch.bfloat16)
    narrow = narrow_projection(linear, outputs=3)
    assert (narrow.in_features, narrow.out_features, narrow.weight.dtype) == (4, 3, torch.bfloat16)
    assert (narrow.bias is not None) == bias
    conv = narrow_projection(Conv1D(6, 4), inputs=3)
    assert isinstance(conv, Conv1D)
    assert conv.weight.shape == (3, 6)


@pytest.mark.parametrize(
    ("sizes", "fault"),
    [
        (torch.tensor([2.0, 2.0]), "dtype torch.float32"),
        (torch.tensor([True, True]), "dtype torch.bool"),
        (torch.tensor([4, 0]), "holds 0"),
        (torch.tensor([5, -1]), "holds -1"),
        (torch.tensor([2, 3]), "sums to 5, the layer had 4"),
    ],
)
def test_what_is_no_scaling_matrix(sizes, fault):
    with pytest.raises(BrokenCheckpointError, match=fault):
        check_cluster_sizes(sizes, 4, "x")


def test_a_scaling_matrix_passes():
    check_cluster_sizes(torch.tensor([1, 3], dtype=torch.int32), 4, "x")
