"""What a step of fine-tuning costs: time, memory and optimiser state, fused against unfused and folded."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, PreTrainedModel

from ..data import Batch, on_device
from ..families import family_of
from ..fusion import plan_fusion
from ..measure import latencies, peak_memory, training_step
from ..modeling.building import convert_config
from ..modeling.classes import fused_class
from ..modeling.configs import config_class
from ..modeling.loading import read_config
from ..recipe import FFNWidth, FusionConfig, FusionSection

__all__ = ["StepCost", "random_batch", "random_forms", "random_model", "step_costs"]


@dataclass(frozen=True)
class StepCost:
    """The cost of one step: forward, backward, AdamW.

    Args:
        name: `"unfused"`, `"fused"` or `"folded"`: as fused, with P folded into the weights.
        seconds: Median time.
        spread: Distance between the quartiles, in seconds.
        of_unfused: Time as a share of the unfused model's.
        peak_memory: Bytes that a step rises above the loaded model; None where the system does not tell.
        optimizer_bytes: Bytes of AdamW's state.
        parameters: Parameters.
    """

    name: str
    seconds: float
    spread: float
    of_unfused: float
    peak_memory: int | None
    optimizer_bytes: int
    parameters: int


def random_model(config: str, device: str = "cpu") -> PreTrainedModel:
    """A model as a config describes it, with random weights: what a step costs does not depend on them.

    Args:
        config: Folder or Hub id with a `config.json`.
        device: Where to put it.

    Raises:
        FusionConfigError: There is no such config.
    """
    described = read_config(config)
    head: Any = AutoModelForSeq2SeqLM if described.is_encoder_decoder else AutoModelForSequenceClassification
    with torch.device(device):
        return head.from_config(described, dtype=torch.float32)


def step_costs(
    model: PreTrainedModel,
    recipe: FusionConfig,
    *,
    batch_size: int = 32,
    length: int = 128,
    autocast: torch.dtype | None = None,
    compiled: bool = False,
    seconds: float = 3.0,
) -> list[StepCost]:
    """Measures steps of a model, of the fused one, and of the fused one with P folded, in turn.

    Args:
        model: The original model, in float32 on the device to measure on.
        recipe: Which FFNs become how wide.
        batch_size: Rows of a batch.
        length: Tokens of each row.
        autocast: Run forwards under autocast to this dtype.
        compiled: Run them under `torch.compile`.
        seconds: Time to spend on each model.
    """
    models = random_forms(model, recipe)
    batch = random_batch(model, batch_size, length)
    if compiled:
        for each in models.values():
            each.compile()
    under = torch.autocast(model.device.type, autocast) if autocast else contextlib.nullcontext()
    with under:
        times = latencies(list(models.values()), batch, training=True, seconds=seconds)
        memory = [peak_memory(each, batch, training=True) for each in models.values()]
        states = [_optimizer_bytes(each, batch) for each in models.values()]
    return [
        StepCost(name, time.median, time.spread, time.median / times[0].median, peak, state, each.num_parameters())
        for (name, each), time, peak, state in zip(models.items(), times, memory, states, strict=True)
    ]


def random_forms(model: PreTrainedModel, recipe: FusionConfig) -> dict[str, PreTrainedModel]:
    """A model as `"unfused"`, and with random weights on its device as `"fused"` and, without P, as `"folded"`.

    Args:
        model: The original model.
        recipe: Which FFNs become how wide.
    """
    return {"unfused": model, "fused": _twin(model, recipe, "fused"), "folded": _twin(model, recipe, "narrow")}


def _twin(model: PreTrainedModel, recipe: FusionConfig, form: str) -> PreTrainedModel:
    """A model as fusion makes it of this one, with random weights; in the form `"narrow"`, without P."""
    widths = {ffn.entry: FFNWidth(width, ffn.width, form) for ffn, width in plan_fusion(model, recipe).widths}
    section = FusionSection(recipe, {"architecture": type(model).__name__}, widths)
    config = convert_config(model.config, config_class(family_of(model.config)), {"mlp_fusion": section.to_dict()})
    with torch.device(model.device):
        return fused_class(type(model))(config)


def random_batch(model: PreTrainedModel, batch_size: int, length: int) -> Batch:
    """Random tokens on the device of a model, `[batch_size, length]`, none of them padding."""
    ids = torch.randint(5, model.config.vocab_size, (batch_size, length), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        batch |= {"decoder_input_ids": ids, "decoder_attention_mask": batch["attention_mask"], "labels": ids}
    return on_device(batch, model)


def _optimizer_bytes(model: PreTrainedModel, batch: Batch) -> int:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    training_step(model, batch, optimizer)
    tensors: Sequence[torch.Tensor] = [value for state in optimizer.state.values() for value in state.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
