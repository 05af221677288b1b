"""Neighbours that go by a class's or a config's name give a fused model what they give its stock class."""

import copy
import json

import pytest
import torch
import transformers
from any_family import tiny_config, tiny_family_model
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_text import tiny_texts, tiny_tokenizer
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


def test_a_config_has_an_empty_auto_map_that_is_never_saved(tmp_path):
    fused = fuse_model(tiny_family_model(FAMILIES["llama"]), FusionConfig(width=32))
    assert fused.config.auto_map == {}
    fused.save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_trl_loads_a_fused_folder_by_itself(tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed: supervised fine-tuning is not tried")
    fuse_model(tiny_family_model(FAMILIES["gpt2"]), FusionConfig(width=32)).save_pretrained(tmp_path / "fused")
    tiny_tokenizer("gpt2").save_pretrained(tmp_path / "fused")
    arguments = trl.SFTConfig(
        str(tmp_path / "run"),
        max_steps=1,
        per_device_train_batch_size=4,
        max_length=16,
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = Dataset.from_dict({"text": tiny_texts()})
    trainer = trl.SFTTrainer(str(tmp_path / "fused"), arguments, train_dataset=rows)
    assert type(trainer.model).__name__ == "FusedGPT2LMHeadModel"
    assert trainer.train().global_step == 1


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "mpnet", "vit"])
def test_losses_and_generation_are_those_of_the_stock_class(name):
    model = tiny_family_model(FAMILIES[name])
    fused = fuse_model(model, FusionConfig(width=32))
    assert fused.loss_type == model.loss_type
    assert fused.can_generate() == model.can_generate()
    assert repr(fused).partition("(")[0] == type(model).__name__
    assert tiny_config(FAMILIES[name]).model_type == fused.config.stock_model_type
