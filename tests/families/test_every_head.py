"""Every head of every family: calibrated by the default recipe on texts and on batches, and reloaded."""

import pytest
import torch
import transformers
from any_family import inputs_of_any, output_of_any, tiny_family_model
from tiny_text import tiny_texts, tiny_tokenizer

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.errors import DataError
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.families.compat import auto_models_of
from hf_mlp_fusion.modeling.find import find_ffns

HEADS = sorted(
    {
        (name, head.__name__)
        for name, family in FAMILIES.items()
        for _, head in auto_models_of(getattr(transformers, family.config_class))
    }
)
PADDING = 3
# One token an image in a pooling head, one a row in a decoder that only starts.
pytestmark = [pytest.mark.every, pytest.mark.filterwarnings("ignore:.*saw .* calibration tokens for")]


def _batch(model, seed):
    """As a Trainer's data loader gives it: padding, and labels of any shape."""
    batch = inputs_of_any(model, batch=4, seed=seed)
    ids = batch.get("input_ids")
    if ids is not None:
        mask = torch.ones_like(ids)
        mask[0, ..., -PADDING:] = 0
        batch["attention_mask"] = mask
        if ids.dim() == 3 or "Classification" in type(model).__name__:
            batch["labels"] = torch.zeros(4, dtype=torch.int64)
        elif "QuestionAnswering" in type(model).__name__:
            batch |= {"start_positions": torch.zeros(4, dtype=torch.int64), "end_positions": ids[:, 0] * 0 + 8}
    return batch


@pytest.mark.parametrize(("name", "head"), HEADS)
def test_calibrated_and_reloaded(name, head, tmp_path):
    cls = getattr(transformers, head)
    model = tiny_family_model(FAMILIES[name], cls)
    width = next(find_ffns(model)).width // 2
    fused = fuse_model(model, FusionConfig(width=width), calibration=[_batch(model, seed) for seed in range(5)])
    assert all(ffn.method == "obs+output" and ffn.tokens for ffn in fused.fusion_report.ffns)
    fused.save_pretrained(tmp_path)
    again = type(fused).from_pretrained(tmp_path)
    assert output_of_any(again).equal(output_of_any(fused))
    if model.main_input_name != "input_ids" or "pixel_values" in inputs_of_any(model):
        with pytest.raises(DataError, match=r"is a text, and .* takes none: give batches|does not run on"):
            fuse_model(model, FusionConfig(width=width), calibration=tiny_texts(), tokenizer=tiny_tokenizer("bert"))
        return
    texts = fuse_model(model, FusionConfig(width=width), calibration=tiny_texts(40), tokenizer=tiny_tokenizer("bert"))
    assert any(ffn.method == "obs+output" and ffn.tokens for ffn in texts.fusion_report.ffns)
