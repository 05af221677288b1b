import json

import pytest
import torch
import transformers
from conftest import tiny_model

from hf_mlp_fusion import BrokenCheckpointError, FusionConfig
from hf_mlp_fusion.baselines import reduce_model
from hf_mlp_fusion.modeling.find import find_ffns
from hf_mlp_fusion.modeling.forms import FORMS
from hf_mlp_fusion.recipe.section import FORM_NAMES, FusionSection

CONFIG = FusionConfig(width=16)


def test_the_section_names_method_and_form():
    section = reduce_model(tiny_model("gpt2"), CONFIG, "prune").config.mlp_fusion
    assert section["method"] == "prune"
    assert section["ffns"]["h.0.mlp"] == {"width": 16, "original_width": 64, "form": "narrow"}
    assert FusionSection.from_dict(section).to_dict() == section
    fused = reduce_model(tiny_model("gpt2"), CONFIG).config.mlp_fusion
    assert "method" not in fused
    assert fused["ffns"]["h.0.mlp"] == {"width": 16, "original_width": 64}


def test_every_form_that_a_section_may_name_is_there():
    assert tuple(FORMS) == FORM_NAMES


@pytest.mark.parametrize(("field", "value"), [("form", "folded"), ("form", 3), ("method", ""), ("method", None)])
def test_broken_sections_are_refused(field, value):
    section = json.loads(json.dumps(reduce_model(tiny_model("gpt2"), CONFIG, "prune").config.mlp_fusion))
    if field == "method":
        section["method"] = value
    else:
        section["ffns"]["h.0.mlp"][field] = value
    with pytest.raises(BrokenCheckpointError, match=field):
        FusionSection.from_dict(section)


@pytest.mark.parametrize(("method", "lost"), [("svd", "second.weight"), ("prune", "c_fc.weight")])
def test_missing_weights_are_refused(method, lost, tmp_path):
    from safetensors.torch import load_file, save_file

    reduce_model(tiny_model("gpt2"), CONFIG, method).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop(next(name for name in tensors if name.endswith(lost)))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BrokenCheckpointError, match="lacks"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_the_low_rank_form_computes_with_its_factors():
    model = tiny_model("gpt2").double()
    small = reduce_model(model, CONFIG, "svd")
    ffn = next(find_ffns(small))
    projection = ffn.host.get_submodule(ffn.spec.up)
    inputs = torch.randn(5, 16, dtype=torch.float64)
    torch.testing.assert_close(projection(inputs), inputs @ projection.weight.T + projection.second.bias)
    assert (ffn.width, ffn.hidden_size, ffn.output_size) == (64, 16, 16)
