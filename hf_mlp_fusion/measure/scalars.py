"""The scalar output of a sample, whose gradients make up the NTK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data import (
    LANGUAGE_OBJECTIVES,
    Batch,
    final_hidden_state,
    float_outputs,
    inputs_of,
    logits_of,
    objective_of,
    row_count,
    token_mask,
)

__all__ = ["Scalar", "sampled_log_likelihood", "scalar_outputs", "token_log_probabilities"]

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
        state, projected on one fixed random direction. For other heads the first floats that they return are taken:
        as logits, or where these are as wide as hidden states, as such.
    """
    objective = objective_of(model)

    def scalar(run: Callable[..., Any], batch: Batch) -> Tensor:
        if objective in LANGUAGE_OBJECTIVES and "labels" in batch:
            return _log_probability(run, batch, objective == "causal")
        return _head_output(model, run, batch)

    return scalar


def _log_probability(run: Callable[..., Any], batch: Batch, causal: bool) -> Tensor:
    values, counted = token_log_probabilities(logits_of(run(**inputs_of(batch))), batch["labels"], causal=causal)
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


def sampled_log_likelihood(logits: Tensor, model: PreTrainedModel, generator: torch.Generator) -> Tensor:
    """The summed log-likelihood of answers drawn from what a model's logits say themselves.

    Args:
        logits: `[..., classes]`; of regression the means of normal answers of variance 1.
        model: The model, whose config says what its logits are.
        generator: Draws the answers; on the device of the logits.

    Returns:
        A scalar.
    """
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    kind = getattr(model.config, "problem_type", None)
    if wide.shape[-1] == 1 or kind == "regression":
        return (wide * torch.randn(wide.shape, generator=generator, device=wide.device, dtype=wide.dtype)).sum()
    if kind == "multi_label_classification":
        drawn = torch.bernoulli(wide.detach().sigmoid(), generator=generator)
        return -nn.functional.binary_cross_entropy_with_logits(wide, drawn, reduction="sum")
    likely = wide.flatten(0, -2).log_softmax(dim=-1)
    # By the inverse of the distribution function: `torch.multinomial` draws a number for each class.
    summed = likely.detach().exp().cumsum(-1)
    drawn = torch.rand(summed[:, :1].shape, generator=generator, device=wide.device, dtype=wide.dtype) * summed[:, -1:]
    return likely.gather(-1, torch.searchsorted(summed, drawn).clamp(max=wide.shape[-1] - 1)).sum()


def _head_output(model: PreTrainedModel, run: Callable[..., Any], batch: Batch) -> Tensor:
    outputs = run(**inputs_of(batch))
    rows = row_count(batch)
    # A head may return a loss, or what all rows share.
    floats = {name: item for name, item in float_outputs(outputs) if item.dim() > 1 and len(item) == rows}
    logits = next((item for name, item in floats.items() if name.endswith("logits")), None)
    if logits is not None:
        return _likelihood(logits)
    if "image_embeds" in floats and "text_embeds" in floats:
        return (floats["image_embeds"] * floats["text_embeds"]).sum(dim=-1)  # each row's own: the logits mix all rows
    found = floats.get("last_hidden_state", next(iter(floats.values()), None))
    if found is None:
        found = final_hidden_state(model, batch)
    hidden_size = getattr(model.config.get_text_config(), "hidden_size", None)
    if "last_hidden_state" not in floats and (found.dim() != 3 or found.shape[-1] != hidden_size):
        return _likelihood(found)
    return _mean_state(found, token_mask(batch, decoder="decoder_input_ids" in batch))


def _likelihood(logits: Tensor) -> Tensor:
    flat = logits.flatten(1)
    return flat[:, 0] if flat.shape[1] == 1 else flat.softmax(dim=-1)[:, 0]


def _mean_state(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None or mask.shape != hidden.shape[:-1]:  # of what went in, sound for example
        mask = torch.ones_like(hidden[..., 0], dtype=torch.bool)
    mean = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    direction = torch.randn(hidden.shape[-1], generator=torch.Generator().manual_seed(0))
    return mean @ (direction / direction.norm()).to(mean)
