"""The measures on really trained models: what the project's claims rest on."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

from hf_mlp_fusion import FusionConfig
from hf_mlp_fusion.baselines import reduce_model
from hf_mlp_fusion.data.objectives import make_batches
from hf_mlp_fusion.data.texts import read_texts
from hf_mlp_fusion.measure import language_loss, ntk_error, output_error

pytestmark = pytest.mark.real
LAST_8 = FusionConfig(width=0.25, layers="last:8")


@pytest.fixture(scope="module")
def sentences():
    path = Path(__file__).parents[3] / "shared" / "data" / "sst2" / "validation.parquet"
    if not path.is_file():
        pytest.skip(f"{path} is not there: the sentences to measure on")
    return read_texts(path)


def test_fusion_keeps_the_kernel_where_its_rivals_lose_it(real_model_path, sentences):
    path = real_model_path("roberta-mini")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    batches = make_batches(model, AutoTokenizer.from_pretrained(path), sentences, samples=16)
    fused = reduce_model(model, LAST_8)
    assert output_error(model, fused, batches).mean == pytest.approx(0.40, abs=0.05)
    errors = {
        name: ntk_error(model, reduce_model(model, LAST_8, name), batches).total.relative
        for name in ("fusion", "cluster", "prune", "svd")
    }
    assert errors["fusion"] < 0.08
    assert errors["cluster"] > 0.4
    assert min(errors["prune"], errors["svd"]) > 2 * errors["fusion"]


def test_plain_fusion_ruins_a_causal_language_model(real_model_path, sentences):
    path = real_model_path("gpt2-mini")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    batches = make_batches(model, AutoTokenizer.from_pretrained(path), sentences, samples=8)
    before, after = (language_loss(m, batches).loss for m in (model, reduce_model(model, LAST_8)))
    assert before == pytest.approx(5.4, abs=0.3)
    assert after > before + 2


def test_fused_experts_lose_almost_nothing(real_model_path, sentences):
    path = real_model_path("switch-mini")
    model = AutoModelForSeq2SeqLM.from_pretrained(path, dtype=torch.float32).eval()
    batches = make_batches(model, AutoTokenizer.from_pretrained(path), sentences, samples=16)
    losses = {
        name: language_loss(reduce_model(model, FusionConfig(width=0.25), name), batches).loss
        for name in ("fusion", "prune")
    }
    before = language_loss(model, batches).loss
    assert before == pytest.approx(5.2, abs=0.3)
    assert losses["fusion"] < before + 0.08
    assert losses["prune"] > losses["fusion"] + 0.05
