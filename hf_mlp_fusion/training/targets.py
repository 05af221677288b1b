"""Targets of tuning by name: what is to be as in the original, and how it is trained best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..data import LANGUAGE_OBJECTIVES, Batch, objective_of
from ..recipe import FusionSection
from .logits import LogitLoss
from .states import LayerwiseLoss, ffn_outputs, hidden_states

__all__ = ["DEFAULT_TARGET", "LEARNING_RATE", "TARGETS", "Target", "learning_rate_for"]

DEFAULT_TARGET = "hidden_states"
"""The paper's target. It brings what the model computes nearer to the original than FFN outputs do."""

LEARNING_RATE = 3e-4
"""Of AdamW, layer by layer. At 1e-3, tuning on FFN outputs made a small RoBERTa worse than it was."""


@dataclass(frozen=True)
class Target:
    """A target of tuning.

    Args:
        loss: Makes of a fused model and its teacher what gives the loss of a batch, called with what runs the fused
            model (itself, or what wraps it) and the batch, without labels.
        learning_rate: AdamW's at the start, or behind the warm-up.
        batch_size: Rows of a step.
        max_length: Tokens of a row, at most.
        arguments: Further arguments of `TrainingArguments`.
        half: Whether a GPU may compute in bfloat16; weights stay in float32.
        folded_rate: The learning rate of language models all of whose P is folded, if it is another: each step moves
            such FFNs less.
    """

    loss: Callable[[PreTrainedModel, PreTrainedModel], Callable[[Callable[..., Any], Batch], Tensor]]
    learning_rate: float
    batch_size: int
    max_length: int
    arguments: dict[str, Any]
    half: bool
    folded_rate: float | None = None


_LAYERWISE = partial(Target, learning_rate=LEARNING_RATE, batch_size=16, max_length=128, arguments={}, half=False)

TARGETS: dict[str, Target] = {
    "hidden_states": _LAYERWISE(partial(LayerwiseLoss, hidden_states)),
    "ffn_outputs": _LAYERWISE(partial(LayerwiseLoss, ffn_outputs)),
    "logits": Target(
        LogitLoss,
        learning_rate=2e-4,
        batch_size=8,
        max_length=512,
        arguments={"lr_scheduler_type": "cosine", "warmup_steps": 0.05, "adam_beta2": 0.95},
        half=True,
        folded_rate=6e-4,
    ),
}
"""A target is a loss, in a file of its own, and an entry here."""


def learning_rate_for(target: str, model: PreTrainedModel) -> float:
    """The learning rate that a target and a fused model ask for.

    Args:
        target: A key of `TARGETS`.
        model: The fused model.
    """
    best, ffns = TARGETS[target], FusionSection.from_dict(model.config.mlp_fusion).ffns
    folded = objective_of(model) in LANGUAGE_OBJECTIVES and all(ffn.power == 0 for ffn in ffns.values())
    return best.folded_rate if folded and best.folded_rate is not None else best.learning_rate
