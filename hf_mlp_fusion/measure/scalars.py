"""The scalar output of a sample, whose gradients make up the NTK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data import LANGUAGE_OBJECTIVES, Batch, inputs_of, objective_of, token_mask

__all__ = ["Scalar", "scalar_outputs", "token_log_probabilities"]

Scalar = Callable[[Callable[..., Any], Batch], Tensor]
"""A function of a model (or what stands for it) and a batch that returns one scalar a sample, `[batch]`."""


def scalar_outputs(model: PreTrainedModel) -> Scalar:
    """Chooses the scalar output that suits a model's head.

    Args:
        model: A stock or fused model.

    Returns:
        For language models the mean log-probability of the observed tokens (those with labels); for classifiers
        softmax(logits)[0], as the paper's code has it; for regression, whose softmax is 1 whatever the weights, the
        logit itself; for models of texts and images the likeness of the two; for models without a head the mean hidden
        state, projected on one fixed random direction.
    """
    if objective_of(model) in LANGUAGE_OBJECTIVES:
        causal = objective_of(model) == "causal"
        return lambda run, batch: _log_probability(run, batch, causal)
    return _head_output


def _log_probability(run: Callable[..., Any], batch: Batch, causal: bool) -> Tensor:
    values, counted = token_log_probabilities(run(**inputs_of(batch)).logits, batch["labels"], causal=causal)
    return (values * counted).sum(dim=-1) / counted.sum(dim=-1).clamp(min=1)


def token_log_probabilities(logits: Tensor, labels: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Log-probabilities of labels.

    Args:
        logits: `[batch, tokens, vocabulary]`.
        labels: `[batch, tokens]`, -100 where none counts.
        causal: The logits at a token speak of the next one.

    Returns:
        The log-probabilities, 0 where no label counts, and which count; both `[batch, tokens]` (one token less if
        causal), in the dtype of the logits, float32 at least.
    """
    if causal:
        logits, labels = logits[:, :-1], labels[:, 1:]
    counted = labels != -100
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    chosen = wide.log_softmax(dim=-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return torch.where(counted, chosen, 0.0), counted


def _head_output(run: Callable[..., Any], batch: Batch) -> Tensor:
    outputs = run(**inputs_of(batch))
    logits = getattr(outputs, "logits", None)
    if logits is not None:
        flat = logits.flatten(1)
        return flat[:, 0] if flat.shape[1] == 1 else flat.softmax(dim=-1)[:, 0]
    if getattr(outputs, "image_embeds", None) is not None and getattr(outputs, "text_embeds", None) is not None:
        return (outputs.image_embeds * outputs.text_embeds).sum(dim=-1)  # each row's own: the logits mix all rows
    hidden = outputs.last_hidden_state
    mask = token_mask(batch, decoder="decoder_input_ids" in batch)
    if mask is None or mask.shape != hidden.shape[:-1]:  # of what went in, sound for example
        mask = torch.ones_like(hidden[..., 0], dtype=torch.bool)
    mean = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    direction = torch.randn(hidden.shape[-1], generator=torch.Generator().manual_seed(0))
    return mean @ (direction / direction.norm()).to(mean)
