"""Expert load against the routers' own dispatch, and what fusion does to it."""

import math
from pathlib import Path

import pytest
import torch
import transformers
from any_family import inputs_of_any, tiny_family_model
from conftest import model_inputs, tiny_model

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.errors import DataError
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.measure import ExpertLoad, expert_load
from hf_mlp_fusion.modeling.find import find_ffns

LAYERS = ["encoder.block.1.layer.1.mlp", "encoder.block.3.layer.1.mlp"]
LAYERS += [name.replace("encoder", "decoder").replace("layer.1", "layer.2") for name in LAYERS]


def dispatched(model, batch):
    """Tokens that each expert computes, by the hand of the routers."""
    counts, hooks = dict.fromkeys(LAYERS, 0), []
    for name in LAYERS:

        def add(module, arguments, output, name=name):
            counts[name] += output[0].flatten(0, 1).sum(0)

        hooks.append(model.get_submodule(name).router.register_forward_hook(add))
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    return counts


@pytest.mark.parametrize("capacity", [64, 2])
@pytest.mark.parametrize("fused", [False, True])
def test_counts_are_those_of_the_routers(fused, capacity):
    model = tiny_model("switch_transformers", expert_capacity=capacity)
    if fused:
        model = fuse_model(model, FusionConfig(width=16))
    batch = model_inputs(model)
    loads = expert_load(model, [batch, batch])
    assert list(loads) == LAYERS
    for name, computed in dispatched(model, batch).items():
        load = loads[name]
        assert sum(load.tokens) == 2 * (18 if name.startswith("encoder") else 10)
        assert sum(load.tokens) - load.dropped == 2 * int(computed.sum())
        assert all(sent >= 2 * done for sent, done in zip(load.tokens, computed.tolist(), strict=True))
    assert any(load.dropped for load in loads.values()) == (capacity == 2)


def test_an_encoder_alone():
    model = tiny_model("switch_transformers")
    encoder = tiny_model("switch_transformers", transformers.SwitchTransformersEncoderModel)
    encoder.encoder.load_state_dict(model.encoder.state_dict())
    encoder = fuse_model(encoder, FusionConfig(width=16))
    whole = expert_load(fuse_model(model, FusionConfig(width=16)), [model_inputs(model)])
    assert expert_load(encoder, [model_inputs(encoder)]) == {name: whole[name] for name in LAYERS[:2]}


def test_padding_does_not_count():
    model = tiny_model("switch_transformers")
    batch = model_inputs(model)
    mask = torch.ones_like(batch["input_ids"])
    mask[1, 4:] = 0
    loads = expert_load(model, [{**batch, "attention_mask": mask}])
    assert [sum(load.tokens) for load in loads.values()] == [13, 13, 10, 10]


def test_summaries():
    even, skewed = ExpertLoad((5, 5, 5, 5), 0), ExpertLoad((10, 10, 0, 0), 3)
    assert even.shares == (0.25,) * 4
    assert (even.imbalance, skewed.imbalance) == (1.0, 2.0)
    assert even.entropy == pytest.approx(1.0)
    assert skewed.entropy == pytest.approx(math.log(2) / math.log(4))
    assert even.distance(skewed) == skewed.distance(even) == 0.5
    assert even.distance(even) == 0.0


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "deepseek_v3", "llama4_text"])
@pytest.mark.parametrize("fused", [False, True])
def test_stacks_are_counted_as_their_routers_choose(name, fused):
    """The experts of a stack: with padding left out, by the stock router's own choice."""
    model = tiny_family_model(FAMILIES[name])
    if fused:
        model = fuse_model(model, FusionConfig(width=32))
    batch = inputs_of_any(model)
    mask = torch.ones_like(batch["input_ids"])
    mask[1, 4:] = 0
    loads = expert_load(model, [batch, {**batch, "attention_mask": mask}])
    layers = list(dict.fromkeys(ffn.name.rsplit(".", 2)[0] for ffn in find_ffns(model) if ffn.expert is not None))
    assert list(loads) == layers
    assert all(sum(load.tokens) == 2 * (27 + 22) and load.dropped == 0 for load in loads.values())
    logits = model.eval()(**batch, output_router_logits=True).router_logits
    alone = expert_load(model, [batch])
    for layer, own in zip(layers, logits, strict=True):
        chosen = torch.bincount(own.reshape(-1, 4).topk(2).indices.flatten(), minlength=4)
        assert alone[layer].tokens == tuple(chosen.tolist())


def test_nothing_to_count():
    dense = tiny_model("gpt2")
    assert expert_load(dense, [model_inputs(dense)]) == {}
    with pytest.raises(DataError, match="no batches"):
        expert_load(tiny_model("switch_transformers"), [])


@pytest.mark.real
def test_fusion_hardly_moves_the_load(real_model_path):
    """Routers are untouched, so only what earlier experts lose can send a token elsewhere."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    from hf_mlp_fusion.data.objectives import make_batches
    from hf_mlp_fusion.data.texts import read_texts

    path = real_model_path("switch-mini")
    texts = Path(path).parents[1] / "data" / "sst2" / "validation.parquet"
    if not texts.is_file():
        pytest.skip(f"{texts} is not there: the sentences to measure on")
    model = AutoModelForSeq2SeqLM.from_pretrained(path, dtype=torch.float32)
    batches = make_batches(model, AutoTokenizer.from_pretrained(path), read_texts(texts), samples=32)
    before, after = (expert_load(m, batches) for m in (model, fuse_model(model, FusionConfig(width=0.25))))
    first, *others = [before[name].distance(after[name]) for name in before]
    assert first == 0.0  # no fused expert comes before it
    assert 0.0 < max(others) < 0.08
    assert max(abs(before[name].imbalance - after[name].imbalance) for name in before) < 0.5
