"""Routers: frozen or trained, and their losses against the papers' formulas, written out token by token."""

import math

import pytest
import torch
from any_family import tiny_family_model
from conftest import tiny_model
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_mlp_fusion import FusionConfig, UnsupportedModelError, freeze_routers, fuse_model, router_losses
from hf_mlp_fusion.errors import DataError
from hf_mlp_fusion.families import FAMILIES

EXPERTS = 4


def switch(fused, **changes):
    model = tiny_model("switch_transformers", **changes)
    return fuse_model(model, FusionConfig(width=16)) if fused else model


def padded_batch():
    """Rows of 9 and 5 tokens, with targets of 6 and 3."""
    ids = torch.randint(2, 90, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    labels = ids[:, :6].clone()
    labels[1, 3:] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def losses_by_hand(logits, mask):
    """Load balancing (Switch Transformers, eq. 4 to 6) and z-loss (ST-MoE, eq. 5) of one layer."""
    tokens = [row.tolist() for row in logits[mask]]
    chosen, probability, z = [0.0] * EXPERTS, [0.0] * EXPERTS, 0.0
    for row in tokens:
        total = sum(math.exp(value) for value in row)
        chosen[row.index(max(row))] += 1 / len(tokens)
        for expert, value in enumerate(row):
            probability[expert] += math.exp(value) / total / len(tokens)
        z += math.log(total) ** 2 / len(tokens)
    return EXPERTS * sum(f * p for f, p in zip(chosen, probability, strict=True)), z


@pytest.mark.parametrize("fused", [False, True])
def test_routers_freeze_and_thaw(fused):
    model = switch(fused)
    names = freeze_routers(model)
    assert len(names) == 4
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name not in names) == ("router" not in name)
    assert freeze_routers(model, frozen=False) == names
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("fused", [False, True])
def test_routers_beside_an_adapter(fused):
    """PEFT's copies of the routers train, and freeze; the weights under the adapter do not thaw."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["wi", "wo"], modules_to_save=["classifier"])
    model = get_peft_model(switch(fused), config)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with pytest.raises(UnsupportedModelError, match="modules_to_save"):
        freeze_routers(model, frozen=False)
    routers = {name for name in freeze_routers(model) if name in trained}
    assert len(routers) == 4
    left = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert left == trained - routers
    assert all("lora_" in name for name in left)


def test_dense_models_have_none():
    with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel has no routers"):
        freeze_routers(tiny_model("gpt2"))


@pytest.mark.parametrize("fused", [False, True])
def test_losses_are_those_of_the_papers(fused):
    model, batch = switch(fused), padded_batch()
    outputs = model(**batch, output_router_logits=True)
    masks = {"encoder": batch["attention_mask"].bool(), "decoder": batch["labels"] != -100}
    layers = [
        losses_by_hand(logits, mask) for stack, mask in masks.items() for logits in outputs[f"{stack}_router_logits"]
    ]
    assert len(layers) == 4
    found = router_losses(outputs, batch)
    assert found.balance.item() == pytest.approx(sum(balance for balance, _ in layers), rel=1e-5)
    assert found.z.item() == pytest.approx(sum(z for _, z in layers), rel=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_train_the_routers(checkpointing):
    grads = []
    for enable in (False, checkpointing):
        model = switch(True, dropout_rate=0.0, router_jitter_noise=0.0).train()
        if enable:
            model.activation_checkpointing_enable()
        losses = router_losses(model(**padded_batch(), output_router_logits=True), padded_batch())
        (losses.balance + losses.z).backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if ".router." in name})
    for name, grad in grads[0].items():
        assert grad.abs().sum() > 0
        torch.testing.assert_close(grad, grads[1][name])


def test_what_transformers_computes():
    """Its losses take the layers of a stack for one, row by row, padding and all. Not so? Then ours may go."""
    batch = padded_batch()
    model = switch(True)
    outputs = model(**batch, output_router_logits=True)
    for stack in ("encoder", "decoder"):
        rows = torch.cat(outputs[f"{stack}_router_logits"], dim=1)
        pooled = [losses_by_hand(row[None], torch.ones(1, len(row), dtype=torch.bool)) for row in rows]
        assert outputs[f"{stack}_aux_loss"].item() == pytest.approx(sum(balance for balance, _ in pooled) / 2)
        assert outputs[f"{stack}_z_loss"].item() == pytest.approx(sum(z for _, z in pooled) / 2)
    with torch.no_grad():  # in each layer one expert gets everything, another one in the next
        for expert, layer in enumerate((1, 3)):
            router = model.encoder.block[layer].layer[-1]
            router.layer_norm.weight.fill_(0.0)
            router.mlp.router.classifier = torch.nn.Linear(16, EXPERTS)
            router.mlp.router.classifier.bias.copy_(20.0 * torch.eye(EXPERTS)[expert])
    outputs = model(**batch, output_router_logits=True)
    assert outputs.encoder_aux_loss.item() == pytest.approx(EXPERTS / 2)
    outputs["decoder_router_logits"] = ()
    assert router_losses(outputs, batch).balance.item() == pytest.approx(2 * EXPERTS)


def test_outputs_without_logits():
    with pytest.raises(DataError, match="output_router_logits=True"):
        router_losses(switch(True)(**padded_batch()), padded_batch())


class RouterTrainer(Seq2SeqTrainer):
    """The example of `router_losses`."""

    loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs, output_router_logits=True)
        losses = router_losses(outputs, inputs)
        loss = outputs.loss + 0.01 * losses.balance + 0.001 * losses.z
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("frozen", [False, True])
def test_training_with_the_losses(frozen, tmp_path):
    model = switch(True, dropout_rate=0.0, router_jitter_noise=0.0, router_aux_loss_coef=0.0, router_z_loss_coef=0.0)
    if frozen:
        freeze_routers(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = [{name: tensor[index] for name, tensor in padded_batch().items()} for index in (0, 1)]
    expected = 0.0
    for row in ({name: tensor[None] for name, tensor in row.items()} for row in rows):
        outputs = model(**row, output_router_logits=True)
        losses = router_losses(outputs, row)
        expected += (outputs.loss + 0.01 * losses.balance + 0.001 * losses.z).item() / len(rows)

    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        max_steps=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
    )
    trainer = RouterTrainer(model, arguments, train_dataset=rows)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert len([name for name in moved if ".router." in name]) == (0 if frozen else 4)
    assert [name for name in moved if name.endswith(".wi.weight")]
    assert not [name for name in moved if name.endswith("cluster_sizes")]


STACKED = ("mixtral", "gpt_oss", "deepseek_v3", "llama4_text")


@pytest.mark.parametrize("name", STACKED)
def test_routers_of_stacks(name):
    """Frozen and thawed, and their losses by hand; the balance of top-2 routers counts both experts of a token."""
    fused = fuse_model(tiny_family_model(FAMILIES[name]), FusionConfig(width=32))
    names = freeze_routers(fused)
    assert names
    assert all(("gate.weight" in name or ".router." in name) and "shared" not in name for name in names)
    assert freeze_routers(fused, frozen=False) == names
    batch = {name: tensor for name, tensor in padded_batch().items() if name != "labels"}
    outputs = fused(**batch, output_router_logits=True)
    found = router_losses(outputs, batch, top_k=2)
    mask, balance, z = batch["attention_mask"].bool().flatten(), 0.0, 0.0
    for logits in outputs.router_logits:
        logits = logits.detach().reshape(len(mask), -1)[mask]
        z += losses_by_hand(logits, torch.ones(len(logits), dtype=torch.bool))[1]
        chosen = torch.bincount(logits.topk(2).indices.flatten(), minlength=EXPERTS) / (2 * len(logits))
        balance += float(EXPERTS * (chosen * logits.softmax(-1).mean(0)).sum())
    assert found.balance.item() == pytest.approx(balance, rel=1e-5)
    assert found.z.item() == pytest.approx(z, rel=1e-5)
    found.balance.backward()
    assert all(fused.get_parameter(name).grad is not None for name in names if "bias" not in name)
