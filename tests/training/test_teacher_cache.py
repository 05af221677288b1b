"""Predictions of a teacher that were kept in files: over the likeliest tokens, and all others together."""

import copy

import pytest
import torch
import transformers
from conftest import tiny_model
from test_layerwise import NARROW, collate
from test_logits import MODELS
from test_resumed import stop_at
from tiny_text import tiny_texts, tiny_tokenizer
from tuning_rows import tuning_rows

from hf_mlp_fusion import FusionConfigError, fuse_model
from hf_mlp_fusion.data import with_decoder_inputs
from hf_mlp_fusion.measure import LogitDivergence, kl
from hf_mlp_fusion.training import tune_model, work

pytestmark = pytest.mark.filterwarnings("ignore::hf_mlp_fusion.FusionWarning")

KINDS = ["causal", "masked", "seq2seq, experts", "gated, capped", "stacked experts"]
OPTIONS = {"target": "logits", "steps": 6, "batch_size": 4, "max_length": 12, "learning_rate": 1e-3}


def gradients(fused, loss):
    fused.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in fused.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [5, 98])
def test_the_divergence_is_over_likely_tokens_and_the_rest(kind, count, monkeypatch):
    model = MODELS[kind]().double()
    fused = fuse_model(model, NARROW)
    batch = with_decoder_inputs(model, collate(tuning_rows(model)[:5]))
    batch.pop("labels", None)
    pair = LogitDivergence(model, fused)
    pair.in_pieces(batch)
    monkeypatch.setattr(kl, "LOGIT_BYTES", 3 * 4 * 99)
    ids, values = pair.top(batch, count)
    assert ids.dtype == torch.int32
    total, items = pair.sums_of_top(fused, batch, ids, values)
    found = gradients(fused, total)
    mask = batch.get("decoder_attention_mask", batch["attention_mask"]).bool()
    with torch.no_grad():
        wanted = model(**batch).logits[mask].softmax(-1)
    likely = wanted.topk(count)
    own = fused(**batch).logits[mask].softmax(-1).gather(-1, likely.indices)
    shares = [torch.cat([part, 1 - part.sum(-1, keepdim=True)], -1) for part in (likely.values, own)]
    naive = (shares[0] * (shares[0].log() - shares[1].log())).sum()
    assert items == mask.sum()
    assert total.item() == pytest.approx(naive.item(), rel=1e-6)
    if count == 98:  # all others are one token
        assert total.item() == pytest.approx(pair.sums(fused, batch, batch)[0].item(), rel=1e-6)
    expected = gradients(fused, naive)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("family", ["gpt2", pytest.param("switch_transformers", marks=pytest.mark.every)])
def test_nearly_all_tokens_are_as_good_as_all(family, tmp_path):
    model, tokenizer = tiny_model(family), tiny_tokenizer(family)
    fused = fuse_model(model, NARROW)
    whole, kept, few = (copy.deepcopy(fused) for _ in range(3))
    results = [
        tune_model(item, model, tiny_texts(60), tokenizer, **OPTIONS, cache_logits=count)
        for item, count in ((whole, None), (kept, len(model.get_output_embeddings().weight) - 1), (few, 4))
    ]
    assert results[0].divergence[0] == results[1].divergence[0] == results[2].divergence[0]
    moved = (results[0].divergence[1] - results[0].divergence[0]) or 1.0
    assert abs(results[1].divergence[1] - results[0].divergence[1]) < 0.1 * abs(moved)
    assert not torch.equal(
        torch.cat([p.flatten() for p in few.parameters()]), torch.cat([p.flatten() for p in kept.parameters()])
    )


def test_files_are_written_once_and_mended(tmp_path, monkeypatch):
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer("gpt2")
    fused = fuse_model(model, NARROW)
    whole, again, place = copy.deepcopy(fused), copy.deepcopy(fused), tmp_path / "work"
    options = OPTIONS | {"cache_logits": 8, "work": place}
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        with pytest.raises(KeyboardInterrupt):
            tune_model(fused, model, tiny_texts(400), tokenizer, **options)
    files = sorted(place.glob("teacher-*.safetensors"))
    assert len(files) > 2
    files[1].write_bytes(files[1].read_bytes()[:40])  # no write of ours ends so; a disk may
    asked, top = [], LogitDivergence.top
    monkeypatch.setattr(LogitDivergence, "top", lambda *args: asked.append(1) or top(*args))
    tune_model(again, model, tiny_texts(400), tokenizer, **options)
    assert len(asked) == 1
    tune_model(whole, model, tiny_texts(400), tokenizer, **options | {"work": None})
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in whole.state_dict().items())
    with work.open_work(place) as opened:
        assert opened.worth_keeping
    with pytest.raises(FusionConfigError, match="had other cached logits"):
        tune_model(copy.deepcopy(fused), model, tiny_texts(400), tokenizer, **options | {"cache_logits": 9})


def test_what_has_no_tokens_to_keep_is_refused():
    model = tiny_model("bert", transformers.BertForSequenceClassification)
    fused = fuse_model(model, NARROW)
    with pytest.raises(FusionConfigError, match="leave cache_logits out"):
        tune_model(fused, model, tiny_texts(60), tiny_tokenizer("bert"), target="logits", cache_logits=4)
    model = tiny_model("gpt2")
    fused = fuse_model(model, NARROW)
    with pytest.raises(FusionConfigError, match="leave cache_logits out"):
        tune_model(fused, model, tiny_texts(60), tiny_tokenizer("gpt2"), cache_logits=4)
    with pytest.raises(FusionConfigError, match="cache_logits must be 1 to 98, not 99"):
        tune_model(fused, model, tiny_texts(60), tiny_tokenizer("gpt2"), target="logits", cache_logits=99)
