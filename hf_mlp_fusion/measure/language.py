"""Loss and perplexity of language models on plain texts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PreTrainedModel

from ..data import LANGUAGE_OBJECTIVES, Batch, as_batches, evaluating, fitting_pieces, objective_of, on_device, run_on
from ..errors import DataError
from .log_probabilities import LabelScores

__all__ = ["LanguageLoss", "language_loss"]


@dataclass(frozen=True)
class LanguageLoss:
    """A language model's loss.

    Args:
        objective: `"causal"` (next token), `"masked"` (masked tokens) or `"spans"` (T5's span corruption).
        loss: Mean negative log-probability of a token, in nats.
        tokens: Tokens that were predicted.
    """

    objective: str
    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss); of a masked language model, over the masked tokens."""
        return math.exp(min(self.loss, 700.0))


def language_loss(model: PreTrainedModel, batches: Iterable[Batch]) -> LanguageLoss:
    """Measures the loss of a causal, masked or span-corruption language model.

    Args:
        model: A stock or fused model with a language-model head. Of one that PEFT has wrapped, `get_base_model()`,
            which computes with its LoRA.
        batches: Batches with labels, as `hf_mlp_fusion.data.objectives.make_batches` gives them.

    Raises:
        DataError: The model has no language-model head, or no token has a label.
    """
    objective = objective_of(model)
    if objective not in LANGUAGE_OBJECTIVES:
        hint = ": of an adapted model, measure get_base_model()" if hasattr(model, "peft_config") else ""
        raise DataError(f"{type(model).__name__} has no language-model head, so texts alone give it no loss{hint}")
    total, tokens = 0.0, 0
    scores: LabelScores | None = None
    with evaluating(model):
        for whole in as_batches(model, batches):
            with run_on("the batches"):
                scores = scores or LabelScores(model, on_device(whole, model))
            for batch in fitting_pieces(model, [whole], logits=scores.head is None):
                with run_on("the batches"):
                    values = scores.log_probabilities(on_device(batch, model))
                total -= values.double().sum().item()
                tokens += len(values)
    if not tokens:
        raise DataError("no token of these texts has a label: give longer texts")
    return LanguageLoss(objective, total / tokens, tokens)
