"""Layer-wise tuning: what it compares, what it moves and what it leaves alone."""

import copy
import json

import pytest
import torch
import transformers
from accelerate import cpu_offload
from conftest import tiny_model
from safetensors.torch import load_file
from torch.nn.functional import mse_loss
from tuning_rows import tuning_arguments, tuning_rows

from hf_mlp_fusion import FusionConfig, FusionConfigError, UnsupportedModelError, fuse_model
from hf_mlp_fusion.data import with_decoder_inputs
from hf_mlp_fusion.measure import output_error
from hf_mlp_fusion.modeling.find import find_ffns
from hf_mlp_fusion.training import LayerwiseTuningTrainer

pytestmark = pytest.mark.filterwarnings("ignore::hf_mlp_fusion.FusionWarning")

LAYERWISE = ["hidden_states", "ffn_outputs"]
FAMILIES = ["roberta", "gpt2", "switch_transformers"]
NARROW = FusionConfig(width=16, targets="all")


def collate(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def make_trainer(model, fused, folder, target="hidden_states", rows=None, **arguments):
    rows = rows or tuning_rows(model)
    return LayerwiseTuningTrainer(
        fused,
        tuning_arguments(folder, **arguments),
        teacher=model,
        target=target,
        train_dataset=rows[8:],
        eval_dataset=rows[:8],
    )


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def trainability(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("target", LAYERWISE)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_brings_the_fused_ffns_nearer_and_moves_nothing_else(family, target, tmp_path):
    model = tiny_model(family)
    fused = fuse_model(model, NARROW)
    for name, parameter in fused.named_parameters():  # some frozen already, FFNs too
        parameter.requires_grad_("0" not in name)
    rows = tuning_rows(model)
    rate = {"switch_transformers": 1e-2}.get(family, 2e-3)  # its weights are larger
    trainer = make_trainer(model, fused, tmp_path, target, rows, num_train_epochs=3, learning_rate=rate)
    before, teacher, trained = state_of(fused), state_of(model), trainability(fused)
    held_out = [with_decoder_inputs(model, collate(rows[:8]))]
    error = {"hidden_states": "hidden_state", "ffn_outputs": "mean"}[target]
    errors = [getattr(output_error(model, fused, held_out), error)]
    losses = [trainer.evaluate()["eval_loss"]]
    trainer.train()
    errors.append(getattr(output_error(model, fused, held_out), error))
    losses.append(trainer.evaluate()["eval_loss"])

    assert losses[1] < 0.9 * losses[0]
    if family != "switch_transformers":  # whose random routers send tokens elsewhere once inputs differ
        assert errors[1] < 0.9 * errors[0]
    ffns = {name for ffn in find_ffns(fused) if ffn.is_fused for name in ffn.parameter_names()}
    moved = {name for name, tensor in fused.state_dict().items() if not torch.equal(tensor, before[name])}
    # An expert that no token reaches does not move.
    assert moved <= ffns
    assert len(moved) > 0.8 * len(ffns)
    assert trainability(fused) == trained
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in model.state_dict().items())
    assert not model.training
    assert not any(parameter.grad is not None for parameter in model.parameters())
    (done,) = fused.fusion_report.tuning
    assert (done.target, done.steps, done.batch_size) == (target, 18, 4)


@pytest.mark.parametrize("target", LAYERWISE)
@pytest.mark.parametrize("family", FAMILIES)
def test_where_nothing_was_lost_the_loss_is_zero(family, target, tmp_path):
    """Although both models have dropout, and Switch's routers noise, and the teacher is in training mode."""
    model = tiny_model(family).train()
    fused = fuse_model(model, FusionConfig(width=1.0, targets="all"))
    before = state_of(fused)
    trainer = make_trainer(model, fused, tmp_path, target, max_steps=3)
    assert trainer.train().training_loss < 1e-10
    assert all(torch.equal(tensor, before[name]) for name, tensor in fused.state_dict().items())
    assert model.training
    assert fused.training


def naive_states(model, batch, target):
    """Per layer, the outputs on the tokens that are no padding."""
    found = []
    if target == "hidden_states":
        outputs = model(**batch, output_hidden_states=True)
        for stack, mask in (("", ""), ("encoder_", ""), ("decoder_", "decoder_")):
            states = getattr(outputs, f"{stack}hidden_states", None) or ()
            found += [tensor[batch[f"{mask}attention_mask"].bool()] for tensor in states[1:]]
        return found
    kinds = ("RobertaOutput", "GPT2MLP", "SwitchTransformersLayerFF")
    for name, module in model.named_modules():
        if any(cls.__name__ in kinds for cls in type(module).__mro__):
            part = {"RobertaOutput": "dense", "SwitchTransformersLayerFF": "mlp"}.get(type(module).__name__)
            mask = "decoder_attention_mask" if "decoder" in name else "attention_mask"
            module = module.get_submodule(part) if part else module
            module.register_forward_hook(lambda _, __, output, mask=mask: found.append(output[batch[mask].bool()]))
    model(**batch)
    return found


@pytest.mark.parametrize("target", LAYERWISE)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_mean_over_layers_of_the_error_on_what_is_no_padding(family, target, tmp_path):
    model = tiny_model(family).double()
    fused = fuse_model(model, NARROW)
    rows = tuning_rows(model)
    trainer = make_trainer(model, fused, tmp_path, target, rows)
    batch = collate(rows[:5])
    with torch.no_grad():
        loss = trainer.compute_loss(fused, batch)
        if "labels" in batch:
            labels = batch.pop("labels")
            batch["decoder_input_ids"] = model._shift_right(labels)
            batch["decoder_attention_mask"] = torch.nn.functional.pad((labels != -100)[:, :-1].long(), (1, 0), value=1)
        pairs = zip(*(naive_states(copy.deepcopy(m), batch, target) for m in (fused, model)), strict=True)
        errors = [mse_loss(found, wanted).item() for found, wanted in pairs]
    assert len(errors) == {"roberta": 3, "gpt2": 3, "switch_transformers": 8}[family]
    assert loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-9)


def test_resuming_gives_the_same_and_checkpoints_are_ordinary(tmp_path):
    model = tiny_model("gpt2")
    fused = fuse_model(model, NARROW)
    resumed, keys = copy.deepcopy(fused), set(fused.state_dict())
    trainer = make_trainer(model, fused, tmp_path / "a", save_strategy="steps", save_steps=3)
    trainer.train()
    checkpoint = tmp_path / "a" / "checkpoint-3"
    assert set(load_file(checkpoint / "model.safetensors")) <= keys
    make_trainer(model, resumed, tmp_path / "b").train(resume_from_checkpoint=str(checkpoint))
    for name, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, fused.state_dict()[name]), name

    trainer.save_model(tmp_path / "saved")
    loaded = type(fused).from_pretrained(tmp_path / "saved", disable_mmap=True)
    assert set(loaded.state_dict()) == keys
    assert all(torch.equal(tensor, fused.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.fusion_report == fused.fusion_report
    assert json.loads((tmp_path / "saved" / "fusion_report.json").read_text())["tuning"][0]["steps"] == 6


def test_accumulation_and_checkpointing_change_nothing(tmp_path):
    model = tiny_model("gpt2")
    rows = [row | {"attention_mask": torch.ones_like(row["attention_mask"])} for row in tuning_rows(model)]
    results = []
    for arguments in (
        {},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"activation_checkpointing": True},
    ):
        fused = fuse_model(model, NARROW)
        forwards = []
        fused.transformer.h[0].mlp.c_fc.register_forward_hook(lambda *_, count=forwards: count.append(1))
        trainer = make_trainer(model, fused, tmp_path, rows=rows, optim="sgd", learning_rate=0.5, **arguments)
        trainer.train()
        results.append((fused.transformer.h[0].mlp.c_fc.weight, len(forwards)))
    (plain, once), (accumulated, twice), (checkpointed, again) = results
    assert (plain - tiny_fused_weight(model)).norm() > 1e-4
    torch.testing.assert_close(accumulated, plain)
    torch.testing.assert_close(checkpointed, plain)
    assert (once, twice, again) == (6, 12, 12)  # checkpointing runs each layer again


def tiny_fused_weight(model):
    return fuse_model(model, NARROW).transformer.h[0].mlp.c_fc.weight


def test_the_teacher_may_have_another_head_and_be_offloaded(tmp_path):
    masked = tiny_model("roberta")
    fused = fuse_model(tiny_model("roberta", transformers.RobertaForSequenceClassification), NARROW)
    trainer = make_trainer(masked, fused, tmp_path)
    expected = trainer.evaluate()["eval_loss"]
    assert expected > 0
    cpu_offload(masked, torch.device("cpu"))
    assert all(parameter.is_meta for parameter in masked.parameters())
    trainer = make_trainer(masked, fused, tmp_path)
    assert trainer.evaluate()["eval_loss"] == expected
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < expected
    with pytest.raises(FusionConfigError, match="leave teacher_device out"):
        LayerwiseTuningTrainer(fused, tuning_arguments(tmp_path), teacher=masked, teacher_device="cpu")


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (lambda: tiny_model("bert"), lambda: tiny_model("bert"), "a BertForMaskedLM is not fused"),
        (None, lambda: fuse_model(tiny_model("roberta"), NARROW), "the teacher is fused itself: give the original"),
        (None, lambda: tiny_model("gpt2"), "a GPT2LMHeadModel cannot teach a FusedRobertaForMaskedLM"),
        (None, lambda: tiny_model("roberta", num_hidden_layers=2), "the teacher has 2 FFNs where 3 were"),
        (
            None,
            lambda: tiny_model("roberta", intermediate_size=32),
            r"encoder.layer.0 has the shape \(16, 32, 16\), the original's had \(16, 64, 16\)",
        ),
        (None, lambda: tiny_model("roberta", vocab_size=50), r"word_embeddings.weight has the shape \(50, 16\)"),
    ],
    ids=["student not fused", "teacher fused", "family", "layers", "units", "vocabulary"],
)
def test_models_that_do_not_belong_together_are_refused(student, teacher, message, tmp_path):
    fused = student() if student else fuse_model(tiny_model("roberta"), NARROW)
    with pytest.raises(UnsupportedModelError, match=message):
        LayerwiseTuningTrainer(fused, tuning_arguments(tmp_path), teacher=teacher())


def test_bad_arguments_are_refused(tmp_path):
    model = tiny_model("gpt2")
    fused = fuse_model(model, NARROW)
    with pytest.raises(FusionConfigError, match="must be one of 'hidden_states', 'ffn_outputs', 'logits', not 'x'"):
        LayerwiseTuningTrainer(fused, tuning_arguments(tmp_path), teacher=model, target="x")
    arguments = tuning_arguments(tmp_path)
    assert arguments.n_gpu < 2
    arguments._n_gpu = 2
    with pytest.raises(FusionConfigError, match="accelerate launch"):
        LayerwiseTuningTrainer(fused, arguments, teacher=model)
