"""transformers' Trainer on fused models: every checkpoint whole, P never moved, resuming exact."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from conftest import model_inputs, tiny_model
from safetensors import safe_open
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from hf_mlp_fusion import FusionConfig, fuse_model

CONFIG = FusionConfig(width=16, targets="all")
HEADS = {
    "bert": transformers.BertForMaskedLM,
    "roberta": transformers.RobertaForSequenceClassification,
    "gpt2": transformers.GPT2LMHeadModel,
    "switch_transformers": transformers.SwitchTransformersForConditionalGeneration,
}
WAYS = {"plain": {}, "checkpointed bf16": {"activation_checkpointing": True, "bf16": True}}


def fused_model(family):
    return fuse_model(tiny_model(family, HEADS[family]), CONFIG)


def rows(model, count=8):
    """Rows that a model can learn: each predicts its own tokens, or a classifier the parity of its first."""
    ids = model_inputs(model, batch=count)["input_ids"]
    if "SequenceClassification" in type(model).__name__:
        return [{"input_ids": row, "labels": row[0] % 2} for row in ids]
    return [{"input_ids": row, "labels": row} for row in ids]


def trainer(model, folder, kind=Trainer, arguments=TrainingArguments, compute_metrics=None, **changes):
    values = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
    }
    data = rows(model)
    return kind(
        model,
        arguments(**(values | changes)),
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=compute_metrics,
    )


def scalings(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name.endswith("cluster_sizes")}


def check_checkpoint(folder: Path, expected):
    """P is there as integers, unmoved, and so is the receipt."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {name for name in file.keys() if name.endswith("cluster_sizes")} == set(expected)  # noqa: SIM118
        for name, tensor in expected.items():
            assert file.get_slice(name).get_dtype() == "I32"
            assert torch.equal(file.get_tensor(name), tensor)
    assert json.loads((folder / "fusion_report.json").read_text())
    assert json.loads((folder / "config.json").read_text())["mlp_fusion"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", HEADS)
def test_training_keeps_p_and_every_checkpoint_is_whole(family, way, tmp_path):
    model = fused_model(family)
    expected = scalings(model)
    # The best checkpoint is that of the highest loss, the first, so that loading it can be told from keeping the last.
    run = trainer(model, tmp_path, load_best_model_at_end=True, greater_is_better=True, **WAYS[way])
    run.train()

    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert losses == sorted(losses, reverse=True)

    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = [parameters[id(item)] for group in run.optimizer.param_groups for item in group["params"]]
    assert sorted(grouped) == sorted(parameters.values())
    assert not [name for name in run.get_decay_parameter_names(model) if "cluster" in name]

    checkpoints = sorted(tmp_path.glob("checkpoint-*"))
    assert len(checkpoints) == 3
    for folder in checkpoints:
        check_checkpoint(folder, expected)
    assert run.state.best_model_checkpoint == str(checkpoints[0])
    first, last = (type(model).from_pretrained(checkpoints[index]).state_dict() for index in (0, -1))
    assert all(torch.equal(tensor, first[name]) for name, tensor in model.state_dict().items())
    unmoved = {name for name in first if torch.equal(first[name], last[name])}
    assert {name for name in unmoved if ".experts." not in name or name in expected} == set(expected)


@pytest.mark.parametrize("family", HEADS)
def test_resuming_gives_the_same_bits(family, tmp_path):
    whole = trainer(fused_model(family), tmp_path / "whole")
    whole.train()
    resumed = trainer(fused_model(family), tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.state.global_step == whole.state.global_step == 6
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    losses = []
    for steps in (1, 2):
        model = tiny_model("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        shares = {"per_device_train_batch_size": 4 // steps, "gradient_accumulation_steps": steps}
        run = trainer(fuse_model(model, CONFIG), tmp_path / str(steps), **shares)
        run.train()
        losses.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_generation_while_evaluating(way, tmp_path):
    model = fused_model("switch_transformers")

    def length(prediction):
        return {"length": (prediction.predictions != model.config.pad_token_id).sum(axis=1).mean()}

    arguments = {"predict_with_generate": True, "generation_max_length": 6, **WAYS[way]}
    run = trainer(model, tmp_path, Seq2SeqTrainer, Seq2SeqTrainingArguments, compute_metrics=length, **arguments)
    run.train()
    lengths = [entry["eval_length"] for entry in run.state.log_history if "eval_length" in entry]
    assert len(lengths) == 3
    assert all(0 < length < 6 for length in lengths)
