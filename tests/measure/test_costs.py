import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import tiny_model
from peft import LoraConfig, get_peft_model
from tiny_text import tiny_texts, tiny_tokenizer

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.data.objectives import make_batches
from hf_mlp_fusion.errors import DataError
from hf_mlp_fusion.measure import flops, language_loss, latency, model_size, peak_memory
from hf_mlp_fusion.measure.latency import in_turn


def batch_for(model, family):
    return make_batches(model, tiny_tokenizer(family), tiny_texts(20), samples=4, max_length=16)[0]


@pytest.mark.parametrize("training", [False, True])
def test_latency_is_measured_and_leaves_the_weights(training):
    model = tiny_model("gpt2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measured = latency(model, batch_for(model, "gpt2"), training=training, seconds=0.05)
    assert measured.runs >= 5
    assert 0 < measured.median < 5
    assert measured.spread >= 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("taken", "runs", "most"), [(0.01, 30, 32), (1.0, 5, 7), (4.0, 3, 4), (60.0, 2, 3)])
def test_the_time_spent_on_timing_is_bounded(taken, runs, most, monkeypatch):
    """Runs of seconds are made less often: a table of a slow model would take hours else."""
    clock, made = [0.0], []
    module = sys.modules[in_turn.__module__]  # the package has a function of the module's name
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def run():
        clock[0] += taken
        made.append(1)
        return taken

    first, second = in_turn([run, run], seconds=0.3)
    assert first.runs == second.runs == runs
    assert len(made) <= 2 * most
    assert first.median == taken


def test_a_training_step_takes_more_memory_than_a_forward():
    model = tiny_model("bert", hidden_size=256, intermediate_size=4096)
    batch = batch_for(model, "bert")
    forward, step = (peak_memory(model, batch, training=training) for training in (False, True))
    if forward is None:
        pytest.skip("this system does not tell the memory of a process")
    state = 3 * 4 * model.num_parameters()  # gradients and AdamW's two moments
    assert step > 0.9 * state
    assert forward < step / 2


def test_flops_follow_from_the_shapes():
    model = tiny_model("gpt2")
    fused = fuse_model(model, FusionConfig(width=16))
    batch = batch_for(model, "gpt2")
    tokens = batch["input_ids"].numel()
    saved = 3 * 2 * tokens * 2 * 16 * (64 - 16)  # layers, matrices, 2 · d · units
    assert flops(model, batch) - flops(fused, batch) == saved
    assert flops(model, batch, training=True) - flops(fused, batch, training=True) == 3 * saved


@pytest.mark.parametrize("family", ["bert", "gpt2", "switch_transformers"])
def test_size_counts_what_the_receipt_counts(family):
    model = tiny_model(family)
    fused = fuse_model(model, FusionConfig(width=16, targets="all"))
    before, after = model_size(model), model_size(fused)
    report = fused.fusion_report
    assert (before.parameters, before.bytes) == (report.parameters_before, report.bytes_before)
    assert (after.parameters, after.bytes) == (report.parameters_after, report.bytes_after)
    assert before.ffn_parameters == report.ffn_parameters
    assert after.ffn_parameters == sum(ffn.parameters_after for ffn in report.ffns)


@pytest.mark.parametrize("family", ["roberta", "gpt2", "switch_transformers"])
def test_the_loss_is_the_models_own(family):
    model = tiny_model(family).double()
    batch = batch_for(model, family)
    measured = language_loss(model, [batch])
    with torch.no_grad():
        expected = model(**batch).loss.item()
    assert measured.loss == pytest.approx(expected, rel=1e-6)
    assert measured.perplexity == pytest.approx(2.718281828459045**measured.loss)
    labels = batch["labels"][:, 1:] if family == "gpt2" else batch["labels"]
    assert measured.tokens == int((labels != -100).sum())


def test_the_loss_weighs_tokens_not_batches():
    model, tokenizer = tiny_model("gpt2").double(), tiny_tokenizer("gpt2")
    rows = [make_batches(model, tokenizer, [text])[0] for text in ("w1 w2", "w3 w4 w5 w6 w7 w8 w9")]
    losses = [language_loss(model, [row]) for row in rows]
    total = sum(item.loss * item.tokens for item in losses) / sum(item.tokens for item in losses)
    assert language_loss(model, rows).loss == pytest.approx(total, rel=1e-12)


def test_models_without_a_language_head_have_no_loss():
    model = tiny_model("bert", transformers.BertForSequenceClassification)
    with pytest.raises(DataError, match="no language-model head"):
        language_loss(model, [batch_for(model, "bert")])
    causal = tiny_model("gpt2")
    adapted = get_peft_model(tiny_model("gpt2"), LoraConfig(fan_in_fan_out=True))
    with pytest.raises(DataError, match="measure get_base_model"):
        language_loss(adapted, [batch_for(causal, "gpt2")])
    with pytest.raises(DataError, match="no token"):
        language_loss(causal, [])
