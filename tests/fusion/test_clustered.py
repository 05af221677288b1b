"""FFNs that are clustered beside one another become what they become one by one."""

import pytest
import torch
from any_family import tiny_family_model

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.fusion import clustered, layer_fuser
from hf_mlp_fusion.fusion.clustered import at_once
from hf_mlp_fusion.modeling.find import find_ffns


@pytest.mark.parametrize("count", [2, 3, 64])
@pytest.mark.parametrize("family", ["llama", "switch_transformers", "mixtral"])
def test_side_by_side(family, count, monkeypatch):
    model, config = tiny_family_model(FAMILIES[family]), FusionConfig(width=16, targets="all")
    alone = fuse_model(model, config).state_dict()
    for module in (clustered, layer_fuser):
        monkeypatch.setattr(module, "at_once", lambda ffn: count)
    beside = fuse_model(model, config).state_dict()
    assert alone.keys() == beside.keys()
    assert all(torch.equal(alone[name], beside[name]) for name in alone)


def test_on_a_cpu_one_by_one():
    assert at_once(next(iter(find_ffns(tiny_family_model(FAMILIES["llama"]))))) == 1
