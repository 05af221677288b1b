import pytest
import torch
import transformers
from conftest import tiny_model
from tiny_text import tiny_texts, tiny_tokenizer

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.data.objectives import make_batches, objective_of
from hf_mlp_fusion.errors import DataError

LANGUAGE = [("roberta", "masked"), ("gpt2", "causal"), ("switch_transformers", "spans")]


@pytest.mark.parametrize(("family", "objective"), LANGUAGE)
def test_the_head_decides_the_objective(family, objective):
    model = tiny_model(family)
    assert objective_of(model) == objective
    assert objective_of(fuse_model(model, FusionConfig(width=16))) == objective
    assert objective_of(model.base_model if family != "switch_transformers" else model.encoder) == "none"
    assert objective_of(tiny_model("bert", transformers.BertForSequenceClassification)) == "none"


@pytest.mark.parametrize(("family", "objective"), LANGUAGE)
def test_batches_repeat_and_differ_by_seed(family, objective):
    model, tokenizer = tiny_model(family), tiny_tokenizer(family)

    def batches(seed):
        return make_batches(model, tokenizer, tiny_texts(), max_length=16, batch_size=2, seed=seed)

    for one, two in zip(batches(0), batches(0), strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    labels = [torch.cat([batch["labels"] for batch in batches(seed)]) for seed in (0, 1)]
    assert torch.equal(*labels) == (objective == "causal")


def test_samples_and_batch_size_are_kept_to():
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer("gpt2")
    batches = make_batches(model, tokenizer, tiny_texts(50), samples=5, max_length=8, batch_size=2)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 8), (2, 8), (1, 8)]
    longest = make_batches(model, tokenizer, tiny_texts(50), max_length=10_000)[0]["input_ids"].shape[1]
    assert longest <= model.config.n_positions


def test_masked_tokens_are_the_labels():
    tokenizer = tiny_tokenizer("roberta")
    batch = make_batches(tiny_model("roberta"), tokenizer, tiny_texts(), max_length=16)[0]
    masked = batch["input_ids"] == tokenizer.mask_token_id
    assert torch.equal(masked, batch["labels"] != -100)
    assert (masked.sum(dim=1) == 2).all()  # 15 % of 14
    assert not set(batch["labels"][masked].tolist()) & set(tokenizer.all_special_ids)


def test_spans_and_what_is_left_make_up_the_text():
    tokenizer, model = tiny_tokenizer("switch_transformers"), tiny_model("switch_transformers")
    texts = [" ".join(["w1 w2 w3 w4 w5 w6 w7 w8 w9"] * 8)]
    batch = make_batches(model, tokenizer, texts, max_length=36)[0]
    sentinels = {tokenizer.convert_tokens_to_ids(f"<extra_id_{number}>") for number in range(8)}
    inputs, target = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    spans, at = {}, None
    for token in target[:-1]:
        at = token if token in sentinels else at
        spans.setdefault(at, []).append(token)
    assert [len(span) for span in spans.values()] == [4, 4]  # a sentinel and three tokens, 15 % of 35 in all
    whole = [token for item in inputs for token in (spans[item][1:] if item in spans else [item])]
    assert whole == [*tokenizer(texts[0])["input_ids"][:35], tokenizer.eos_token_id]
    shifted = [model.config.decoder_start_token_id, *target[:-1]]
    assert batch["decoder_input_ids"][0].tolist() == shifted


@pytest.mark.parametrize("text", ["w1", "w1 w2", "w1 w2 w3"])
def test_the_shortest_texts_have_a_label(text):
    for family, _ in LANGUAGE:
        batch = make_batches(tiny_model(family), tiny_tokenizer(family), [text])[0]
        assert (batch["labels"] != -100).any()


def test_tokenizers_without_the_tokens_needed_are_refused():
    tokenizer = tiny_tokenizer("roberta")
    tokenizer.mask_token = None
    with pytest.raises(DataError, match="mask token"):
        make_batches(tiny_model("roberta"), tokenizer, tiny_texts())
    tokenizer = tiny_tokenizer("switch_transformers")
    tokenizer.get_vocab = lambda: {"w1": 5}
    with pytest.raises(DataError, match="<extra_id_0>"):
        make_batches(tiny_model("switch_transformers"), tokenizer, tiny_texts())
    with pytest.raises(DataError, match="no row"):
        make_batches(tiny_model("gpt2"), tiny_tokenizer("gpt2"), [])
