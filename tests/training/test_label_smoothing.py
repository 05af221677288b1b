"""Trainer smooths the labels of a fused model as those of its stock class."""

import copy

import pytest
import torch
import transformers
from any_family import tiny_family_model
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.modeling.find import find_ffns

pytestmark = pytest.mark.filterwarnings("ignore::hf_mlp_fusion.FusionWarning")
HEADS = {
    "gpt2": (transformers.GPT2LMHeadModel, {}),
    "llama": (transformers.LlamaForCausalLM, {}),
    "bert": (transformers.BertLMHeadModel, {"is_decoder": True}),
    "mpnet": (transformers.MPNetForMaskedLM, {}),
    "bart": (transformers.BartForConditionalGeneration, {}),
}


def smoothed_loss(model, folder):
    """The loss that Trainer computes with label smoothing."""
    arguments = TrainingArguments(folder, label_smoothing_factor=0.1, use_cpu=True, report_to="none")
    ids = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return Trainer(model.eval(), arguments).compute_loss(model, {"input_ids": ids, "labels": ids.clone()})


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapted"])
@pytest.mark.parametrize("name", HEADS)
def test_labels_are_smoothed_as_in_the_stock_class(name, adapted, tmp_path):
    """All units are kept, so the logits are equal; labels of causal models must be shifted, and of no others."""
    head, changes = HEADS[name]
    model = tiny_family_model(FAMILIES[name], head, **changes)
    fused = fuse_model(model, FusionConfig(width=next(find_ffns(model)).width))
    if adapted:
        targets = ["q", "v"] if name == "mpnet" else None  # PEFT has none for the stock type
        config = LoraConfig(r=2, fan_in_fan_out=name == "gpt2", target_modules=targets)
        model, fused = (get_peft_model(one, config) for one in (model, fused))
    torch.testing.assert_close(smoothed_loss(fused, tmp_path), smoothed_loss(copy.deepcopy(model), tmp_path))
