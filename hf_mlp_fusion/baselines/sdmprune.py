"""SDMPrune (Zhu and Shen, arXiv 2506.11120): first-order saliencies of units by the distance to the model itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from ..data import LANGUAGE_OBJECTIVES, Batch, evaluating, inputs_of, objective_of
from ..errors import UnsupportedModelError
from ..measure.scalars import token_log_probabilities
from ..modeling.ffn import FFN
from ..modeling.find import find_ffns
from ..recipe import FusionConfig
from .saliency import backward_each, gradients_of
from .scored import Todo, best_units, by_scores

__all__ = ["SDMPRUNE", "sdmprune_scores"]

_FIRST = 0.975  # of the units that stay in the first round: at the model itself, the distance has no gradient


def sdmprune_scores(
    model: PreTrainedModel, todo: Todo, config: FusionConfig, batches: Sequence[Batch]
) -> Mapping[str, Tensor]:
    """Two rounds, as in the authors' code: a few units go by the loss of the labels, the others by the distance to the
    model's own predictions, KL(original ‖ pruned).

    A unit's saliency is the mean over the places j of its weights of |g·w of up_ij + gate_ij + down_ji|, summed over
    examples of 1,024 tokens.

    Args:
        model: The model.
        todo: Its FFNs.
        config: The recipe.
        batches: The rows. Where they have no labels, the model's likeliest tokens or classes stand for them.

    Returns:
        Saliencies by FFN, `[I]`; those of the units of the first round are 0.

    Raises:
        UnsupportedModelError: The model predicts no tokens or classes.
    """
    student = copy.deepcopy(model)
    of_student = {ffn.name: ffn for ffn in find_ffns(student)}
    ffns = [of_student[ffn.name] for ffn, _ in todo]
    first = _saliencies(student, ffns, batches, lambda example: _label_loss(student, example))
    for ffn, (_, width) in zip(ffns, todo, strict=True):
        kept = best_units(ffn.read(), first[ffn.name], max(width, math.ceil(_FIRST * ffn.width)))
        _remove(ffn, torch.from_numpy(kept))

    def distance(example: Batch) -> Tensor:
        with torch.no_grad():
            wanted = _predictions(model, example).log_softmax(-1).flatten(0, -2)
        found = _predictions(student, example).log_softmax(-1).flatten(0, -2)
        return kl_div(found, wanted, reduction="batchmean", log_target=True)

    with evaluating(model):
        return _saliencies(student, ffns, batches, distance)


def _saliencies(
    model: PreTrainedModel, ffns: Sequence[FFN], batches: Sequence[Batch], loss: Callable[[Batch], Tensor]
) -> dict[str, Tensor]:
    scores: dict[str, Tensor] = {}

    def add() -> None:
        for ffn in ffns:
            weights, gradients = ffn.read(), gradients_of(ffn)
            moved = weights.down.T * gradients.down.T + weights.up * gradients.up
            if weights.gate is not None and gradients.gate is not None:
                moved += weights.gate * gradients.gate
            scores[ffn.name] = scores.get(ffn.name, 0) + moved.double().abs().mean(1)
        model.zero_grad(set_to_none=True)

    backward_each(model, ffns, batches, loss, add)
    return scores


def _predictions(model: PreTrainedModel, example: Batch) -> Tensor:
    outputs = model(**inputs_of(example))
    logits = getattr(outputs, "logits", None)
    if logits is None or logits.shape[-1] < 2:
        raise UnsupportedModelError(
            "sdmprune compares predictions of tokens or classes, and the model makes none: leave it out"
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _label_loss(model: PreTrainedModel, example: Batch) -> Tensor:
    logits = _predictions(model, example)
    objective = objective_of(model)
    labels = example.get("labels") if objective in LANGUAGE_OBJECTIVES else None
    if labels is None and objective == "causal":
        labels = example.get("input_ids")
    if labels is None:
        likeliest = logits.flatten(0, -2).argmax(-1)
        return -token_log_probabilities(logits.flatten(0, -2)[None], likeliest[None], causal=False)[0].mean()
    values, counted = token_log_probabilities(logits, labels, causal=objective == "causal")
    return -values.sum() / counted.sum().clamp(min=1)


@torch.no_grad()
def _remove(ffn: FFN, kept: Tensor) -> None:
    """Sets all weights of the other units to zero, which leaves the FFN as it is without them."""
    weights = ffn.read()  # views of the model's own weights
    gone = torch.ones(weights.width, dtype=torch.bool)
    gone[kept] = False
    ffn.write(ffn.tensors(weights.with_units(weights.features().masked_fill(gone.to(weights.up.device)[:, None], 0))))


SDMPRUNE = by_scores("sdmprune", sdmprune_scores)
"""The same width everywhere."""
