"""The longest row that a model takes: neither longer, which fails, nor shorter, which cuts texts in silence."""

import pytest
import torch
import transformers
from any_family import tiny_family_model
from conftest import tiny_model
from tiny_text import tiny_tokenizer

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.data import longest_row, make_batches
from hf_mlp_fusion.families import FAMILIES

LEARNED = {  # families with a table of positions, and the padding id that their own checkpoints have
    "bert": 0,
    "roberta": 1,
    "xlm-roberta": 1,
    "camembert": 1,
    "mpnet": 1,
    "esm": 1,
    "distilbert": 0,
    "electra": 0,
    "gpt2": 98,
    "gpt_neo": 98,
    "opt": 1,
    "bart": 1,
    "clip_text_model": 1,
}


def run(model, length):
    ids = torch.full((1, length), 5)
    with torch.no_grad():
        return model(input_ids=ids)[0]


@pytest.mark.parametrize("padding", [None, 3, 0])
@pytest.mark.parametrize("name", LEARNED)
def test_the_last_position_is_used_and_no_more(name, padding):
    changes = {"pad_token_id": LEARNED[name] if padding is None else padding}
    if name == "esm":
        changes["position_embedding_type"] = "absolute"
    model = tiny_family_model(FAMILIES[name], **changes)
    longest = longest_row(model, 10_000)
    assert 59 < longest <= 64
    assert run(model, longest).isfinite().all()
    with pytest.raises((IndexError, ValueError, RuntimeError)):
        run(model, longest + 1)


@pytest.mark.parametrize("name", ["clip", "llama", "t5", "bloom", "deberta-v2", "modernbert"])
def test_others_are_within_what_their_config_says(name):
    model = tiny_family_model(FAMILIES[name])
    assert longest_row(model, 30) == 30
    longest = longest_row(model, 10_000)
    assert longest == (
        64 if name in ("clip", "llama", "deberta-v2", "modernbert") else 10_000 if name == "bloom" else longest
    )


def test_a_large_padding_id_neither_fails_nor_cuts():
    """GPT-2 pads with its last token, 50256."""
    model = tiny_model("gpt2", vocab_size=50257, pad_token_id=50256)
    assert longest_row(model, 128) == 40
    batch = make_batches(model, tiny_tokenizer("gpt2"), ["w1 " * 300], max_length=128)[0]
    assert batch["input_ids"].shape[1] == 40
    fused = fuse_model(
        model, FusionConfig(width=16), calibration=["w1 w2 w3 " * 40] * 4, tokenizer=tiny_tokenizer("gpt2")
    )
    assert fused.fusion_report.ffns[0].tokens > 0


def test_a_classifier_sees_all_of_a_long_text():
    model = tiny_model("gpt2", transformers.GPT2ForSequenceClassification, pad_token_id=30)
    batch = make_batches(model, tiny_tokenizer("gpt2"), ["w1 " * 30], max_length=128)[0]
    assert batch["input_ids"].shape[1] == 30
