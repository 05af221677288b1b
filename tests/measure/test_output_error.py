import math

import pytest
import torch
from conftest import tiny_model
from tiny_text import tiny_texts, tiny_tokenizer

from hf_mlp_fusion import FusionConfig, UnsupportedModelError, fuse_model
from hf_mlp_fusion.data.objectives import make_batches
from hf_mlp_fusion.measure import output_error
from hf_mlp_fusion.modeling.find import find_ffns

FAMILIES = ["bert", "gpt2", "switch_transformers"]


def batches_for(model, family, batch_size=3):
    # Rows of many lengths, so that padding would show if it counted.
    rows = [batch for text in tiny_texts(9) for batch in make_batches(model, tiny_tokenizer(family), [text])]
    if batch_size == 1:
        return rows
    merged = []
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        fills = {"input_ids": 0, "decoder_input_ids": 0, "labels": -100}
        merged.append(
            {
                name: torch.nn.utils.rnn.pad_sequence(
                    [row[name][0] for row in chunk], batch_first=True, padding_value=fills.get(name, 0)
                )
                for name in chunk[0]
            }
        )
    return merged


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_batching_do_not_count(family):
    model = tiny_model(family).double()
    fused = fuse_model(model, FusionConfig(width=16, targets="all"))
    alone, batched = (output_error(model, fused, batches_for(model, family, size)) for size in (1, 3))
    assert alone.ffns.keys() == batched.ffns.keys() == {ffn.name for ffn in find_ffns(model)}
    for name, value in alone.ffns.items():
        assert batched.ffns[name] == pytest.approx(value, rel=1e-9, nan_ok=True)
    assert batched.hidden_state == pytest.approx(alone.hidden_state, rel=1e-9)
    assert 0.01 < alone.mean < 3
    assert alone.hidden_state > 0


def test_it_is_the_relative_norm_on_the_originals_inputs():
    model = tiny_model("gpt2").double()
    fused = fuse_model(model, FusionConfig(width=16))
    batch = batches_for(model, "gpt2", 1)[0]
    error = output_error(model, fused, [batch])
    with torch.no_grad():
        states = model(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states
        for index, block in enumerate(model.transformer.h):
            attended = block.attn(block.ln_1(states[index]))[0] + states[index]
            seen = block.ln_2(attended)
            wanted, found = block.mlp(seen), fused.transformer.h[index].mlp(seen)
            expected = ((found - wanted).norm() / wanted.norm()).item()
            assert error.ffns[f"h.{index}.mlp"] == pytest.approx(expected, rel=1e-9)
        own = fused.transformer(input_ids=batch["input_ids"]).last_hidden_state
    expected = ((own - states[-1]).norm() / states[-1].norm()).item()
    assert error.hidden_state == pytest.approx(expected, rel=1e-9)


def test_experts_without_a_token_have_no_error():
    model = tiny_model("switch_transformers").double()
    with torch.no_grad():
        model.encoder.block[1].layer[1].mlp.router.classifier.weight[2] -= 100  # never chosen for positive inputs
        model.encoder.block[1].layer[1].mlp.router.classifier.weight[2, ::2] += 200
    fused = fuse_model(model, FusionConfig(width=16))
    error = output_error(model, fused, batches_for(model, "switch_transformers", 1)[:1])
    assert any(math.isnan(value) for value in error.ffns.values())
    assert not math.isnan(error.mean)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_error_where_nothing_was_lost(family):
    model = tiny_model(family).double()
    fused = fuse_model(model, FusionConfig(width=64, targets="all"))
    error = output_error(model, fused, batches_for(model, family))
    assert error.mean < 1e-12
    assert error.hidden_state < 1e-12


def test_hooks_and_modes_are_gone_afterwards():
    model = tiny_model("gpt2").train()
    fused = fuse_model(model, FusionConfig(width=16))
    output_error(model, fused, batches_for(model, "gpt2"))
    assert model.training
    assert fused.training
    for ffn in find_ffns(model):
        assert not ffn.host.get_submodule(ffn.spec.up)._forward_pre_hooks
        assert not ffn.host.get_submodule(ffn.spec.down)._forward_hooks


def test_models_that_do_not_belong_together_are_refused():
    fused = fuse_model(tiny_model("bert"), FusionConfig(width=16))
    with pytest.raises(UnsupportedModelError, match="another model"):
        output_error(tiny_model("gpt2"), fused, [])
