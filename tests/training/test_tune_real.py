"""Tuning on really trained models."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.data.texts import read_texts
from hf_mlp_fusion.training import tune_model


@pytest.mark.real
def test_thirty_steps_bring_the_output_nearer(real_model_path):
    path = real_model_path("roberta-mini")
    data = path.parents[1] / "data" / "sst2" / "train.parquet"
    if not data.is_file():
        pytest.skip(f"{data} is not there: the sentences to tune on")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    fused = fuse_model(model, FusionConfig(layers="last:8"))
    tokenizer, sentences = AutoTokenizer.from_pretrained(path), read_texts(data)[:270]
    result = tune_model(fused, model, sentences, tokenizer, batch_size=8, max_length=32)
    assert 28 <= fused.fusion_report.tuning[0].steps <= 32
    assert result.after.mean < 0.9 * result.before.mean
    assert result.after.hidden_state < 0.8 * result.before.hidden_state


@pytest.mark.real
def test_a_few_dozen_steps_on_logits_heal_a_language_model(real_model_path):
    path = real_model_path("gpt2-mini")
    data = path.parents[1] / "data" / "mrpc" / "train.parquet"
    if not data.is_file():
        pytest.skip(f"{data} is not there: the sentences to tune on")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    fused = fuse_model(model, FusionConfig(layers="last:8"))
    tokenizer, sentences = AutoTokenizer.from_pretrained(path), read_texts(data)[:600]
    result = tune_model(
        fused, model, sentences, tokenizer, target="logits", steps=36, batch_size=4, max_length=64, learning_rate=1e-3
    )
    assert fused.fusion_report.tuning[0].steps == 36
    assert result.divergence[1] < 0.8 * result.divergence[0]
    original, before, after = result.losses
    assert original < after < original + 0.8 * (before - original)
