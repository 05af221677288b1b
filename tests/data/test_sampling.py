import pytest
import torch
import transformers
from conftest import tiny_model

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.data.sampling import sample_batches
from hf_mlp_fusion.errors import DataError
from hf_mlp_fusion.measure import output_error


def with_mask(family):
    model = tiny_model(family)
    model.config.mask_token_id = 4
    return model


@pytest.mark.parametrize(
    "model", [tiny_model("gpt2"), with_mask("roberta"), with_mask("bert")], ids=["gpt2", "roberta", "bert"]
)
def test_rows_are_full_repeatable_and_leave_the_generator_alone(model):
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    first = sample_batches(model, 20, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    again, other = sample_batches(model, 20, seed=1), sample_batches(model, 20, seed=2)
    assert [len(batch["input_ids"]) for batch in first] == [16, 4]
    length = 38 if model.config.model_type == "roberta" else 40  # the longest that these models take
    for one, two, three in zip(first, again, other, strict=True):
        assert one["input_ids"].shape[1] == length
        assert torch.equal(one["input_ids"], two["input_ids"])
        assert not torch.equal(one["input_ids"], three["input_ids"])
        assert one["attention_mask"].all()
        assert not (one["input_ids"] == getattr(model.config, "mask_token_id", -1)).any()


def test_sampled_calibration_beats_none():
    model = tiny_model("gpt2")
    held = [{"input_ids": batch["input_ids"]} for batch in sample_batches(model, 16, seed=9)]
    plain = fuse_model(model, FusionConfig(width=16))
    sampled = fuse_model(model, FusionConfig(width=16), calibration="sampled")
    assert output_error(model, sampled, held).mean < 0.8 * output_error(model, plain, held).mean


@pytest.mark.parametrize("head", [transformers.BertModel, transformers.BertForSequenceClassification])
def test_models_that_write_no_text_say_so(head):
    with pytest.raises(DataError, match=f"{head.__name__} writes no text.*give texts"):
        fuse_model(tiny_model("bert", head), FusionConfig(width=16), calibration="sampled")


def test_a_masked_model_needs_its_mask_token():
    with pytest.raises(DataError, match="mask token is not known"):
        sample_batches(tiny_model("bert"), 2)
