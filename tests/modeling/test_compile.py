"""`torch.compile` and `torch.export` of fused models: P adds no break to a graph, and the same numbers come out."""

import pytest
import torch
import transformers
from any_family import inputs_of_any, tiny_family_model
from conftest import first_output, model_inputs, tiny_model

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.modeling.find import find_ffns

CONFIG = FusionConfig(width=16, targets="all")


def fused(family):
    model = fuse_model(tiny_model(family, num_hidden_layers=1), CONFIG)
    model.config.use_cache = False  # a cache is no tensor
    return model


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_one_graph_without_a_break(family):
    model = fused(family)
    expected = first_output(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(**model_inputs(model))[0], expected)


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_export_with_dynamic_shapes(family):
    model = fused(family)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (), model_inputs(model), dynamic_shapes={"input_ids": dynamic}).module()
    inputs = model_inputs(model, batch=3, length=17)
    with torch.no_grad():
        torch.testing.assert_close(program(**inputs)[0], model(**inputs)[0])


@torch.no_grad()
def test_compiling_experts():
    """Stock Switch breaks its graph at the loop over the experts that were hit; fused it breaks in the same places."""
    sizes = {"num_layers": 1, "num_sparse_encoder_layers": 1, "num_experts": 2}
    stock = tiny_model("switch_transformers", transformers.SwitchTransformersEncoderModel, **sizes)
    model = fuse_model(stock, CONFIG)
    expected = first_output(model)
    counts = []
    for candidate in (stock, model):
        torch._dynamo.reset()
        counts.append(torch._dynamo.explain(candidate)(**model_inputs(candidate)).graph_break_count)
    assert counts[0] == counts[1] > 0
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled(**model_inputs(model))[0], expected)


@pytest.mark.parametrize("implementation", ["batched_mm", "grouped_mm"])
def test_stacks_of_experts_are_one_graph(implementation):
    model = fuse_model(tiny_family_model(FAMILIES["mixtral"], num_hidden_layers=1), FusionConfig(width=32))
    for ffn in find_ffns(model):
        ffn.scaling.scales = (1.5 + ffn.expert, 0.5 + ffn.expert, 1.25)
    model.set_experts_implementation(implementation)
    model.config.use_cache = False
    inputs = inputs_of_any(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-6)
