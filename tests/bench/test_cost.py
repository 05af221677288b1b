import pytest
from conftest import tiny_model

from hf_mlp_fusion import FusionConfig, FusionConfigError, fuse_model
from hf_mlp_fusion.bench.cost import random_model, step_costs


@pytest.mark.parametrize("family", ["roberta", "gpt2", pytest.param("switch_transformers", marks=pytest.mark.every)])
def test_a_step_of_the_three_forms(family, tmp_path):
    tiny_model(family).config.save_pretrained(tmp_path)
    recipe = FusionConfig(width=16)
    model = random_model(str(tmp_path))
    unfused, fused, folded = step_costs(model, recipe, batch_size=2, length=8, seconds=0.0)
    assert [cost.name for cost in (unfused, fused, folded)] == ["unfused", "fused", "folded"]
    assert unfused.of_unfused == 1.0
    assert fused.of_unfused == fused.seconds / unfused.seconds
    # Random weights, but the shapes that fusion makes.
    assert fused.parameters == folded.parameters == fuse_model(model, recipe).num_parameters()
    for cost in (unfused, fused, folded):
        steps = cost.optimizer_bytes - 2 * 4 * cost.parameters  # two moments in float32, and a step count a tensor
        assert steps <= 4 * 400
        assert steps >= 0 or family == "switch_transformers"  # an expert that no token came to has no state


def test_no_config_is_refused(tmp_path):
    with pytest.raises(FusionConfigError, match=r"has no readable config\.json"):
        random_model(str(tmp_path))
