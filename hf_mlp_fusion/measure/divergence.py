"""KL divergence of what a fused model's head says from what the original's says, without all logits at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ..data import (
    LANGUAGE_OBJECTIVES,
    LOGIT_BYTES,
    Batch,
    as_batches,
    evaluating,
    few_logits,
    fitting_pieces,
    float_outputs,
    inputs_of,
    objective_of,
    on_device,
    run_on,
    token_mask,
)
from ..errors import UnsupportedModelError
from .log_probabilities import logits_head

__all__ = ["Divergence", "LogitDivergence", "divergence"]


@dataclass(frozen=True)
class Divergence:
    """How far what a fused model's head says is from what the original's says.

    Args:
        mean: Mean over items of KL(original ‖ fused), in nats; of numbers (regression), the mean squared difference.
        items: What the head says something of: tokens of language models and taggers, rows of classifiers, starts and
            ends of answers.
    """

    mean: float
    items: int


def divergence(original: PreTrainedModel, fused: PreTrainedModel, batches: Iterable[Batch]) -> Divergence:
    """Measures the KL divergence of a fused model's predictions from those of the original, KL(original ‖ fused).

    Padding does not count, and no labels are needed. It is zero where both say the same, whatever is true.

    Args:
        original: The model before fusion.
        fused: The same after it, with the same head.
        batches: Batches of model inputs.

    Raises:
        UnsupportedModelError: The two have no head, or not the same.
    """
    total, items = 0.0, 0
    pair = LogitDivergence(original, fused)
    with evaluating(original, fused):
        for whole in as_batches(original, batches):
            for piece in fitting_pieces(original, [whole], logits=not pair.in_pieces(on_device(whole, original))):
                with run_on("the batches"):
                    value, count = pair.sums(fused, on_device(piece, fused), on_device(piece, original))
                total, items = total + value.item(), items + count
    return Divergence(total / items if items else math.nan, items)


class LogitDivergence:
    """The divergence of two models with the same head, which gradients can be taken of.

    Where the logits are what the output embeddings give, they are made in pieces of tokens, in a backward once more:
    logits of all tokens may be most of what a step needs. Where a model does more to them (Gemma 2 caps them), it
    makes them whole.

    Args:
        original: The model before fusion. It is run without gradients.
        fused: The fused model.

    Raises:
        UnsupportedModelError: They have not the same head.
    """

    def __init__(self, original: PreTrainedModel, fused: PreTrainedModel) -> None:
        if not isinstance(fused, type(original)):
            raise UnsupportedModelError(
                f"a {type(fused).__name__} and a {type(original).__name__} have other logits: give the original with "
                "the same head"
            )
        self.original, self.fused = original, fused
        self._pieces: bool | None = None

    def in_pieces(self, batch: Batch) -> bool:
        """Whether logits come in pieces; looked up on the first batch.

        Args:
            batch: A batch.
        """
        if self._pieces is None:
            self._pieces = False
            if objective_of(self.original) in LANGUAGE_OBJECTIVES:
                with evaluating(self.original):
                    self._pieces = logits_head(self.original, batch) is not None
        return self._pieces

    def sums(self, run: Callable[..., Any], batch: Batch, seen: Batch) -> tuple[Tensor, int]:
        """Runs both models on a batch.

        Args:
            run: The fused model, or what wraps it.
            batch: The arguments of its forward; labels are left out.
            seen: The same on the original's device.

        Returns:
            The sum of divergences over items, a scalar on the device of `batch`, float32 at least; and the items.

        Raises:
            UnsupportedModelError: The models return no logits, or not of one shape.
        """
        if self.in_pieces(seen):
            return self._language_sums(run, batch, seen)
        with evaluating(self.original):
            goals = _logits(self.original, self.original(**inputs_of(seen)))
        total, items = torch.zeros((), device=next(iter(batch.values())).device), 0
        for name, found in _logits(self.fused, run(**inputs_of(batch))).items():
            goal = goals[name].to(found.device)
            if goal.shape != found.shape:
                raise UnsupportedModelError(
                    f"the original's {name} have the shape {list(goal.shape)}, those of the fused model "
                    f"{list(found.shape)}: give the original with the same head"
                )
            distance, found, goal = _items(self.fused, name, found, goal, batch)
            total = total + _sum(found, goal, distance)
            items += len(found)
        return total, items

    def _language_sums(self, run: Callable[..., Any], batch: Batch, seen: Batch) -> tuple[Tensor, int]:
        with evaluating(self.original):
            goal = _states(self.original, self.original, seen)
        found = _states(self.fused, run, batch)
        mask = token_mask(batch, decoder=self.fused.config.is_encoder_decoder)
        goal = goal.flatten(0, -2) if mask is None else goal[mask.to(goal.device)]
        found = found.flatten(0, -2) if mask is None else found[mask]
        head, other = self.fused.get_output_embeddings(), self.original.get_output_embeddings()

        def distance(piece: Tensor, wanted: Tensor) -> Tensor:
            with torch.no_grad():
                logits = other(wanted)
            return _KL.apply(head(piece), logits.to(piece.device))

        return _sum(found, goal, distance, len(head.weight)), len(found)


class _KL(torch.autograd.Function):
    """KL(softmax(wanted) ‖ softmax(logits)) over the last axis.

    The gradient is softmax(logits) - softmax(wanted): exactly zero where the two are the same, which that of
    `kl_div` after `log_softmax` is not; Adam would make whole steps of its rounding.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        found, goal = logits.to(wide).log_softmax(-1), wanted.to(wide).log_softmax(-1)
        likely = goal.exp()
        ctx.dtype = logits.dtype
        ctx.save_for_backward(found.exp() - likely)
        return torch.where(likely > 0, likely * (goal - found), 0.0).sum(-1)  # minus infinity twice is no difference

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return (gradient[..., None] * difference).to(ctx.dtype), None


def _squares(found: Tensor, wanted: Tensor) -> Tensor:
    wide = torch.promote_types(found.dtype, torch.float32)
    return (found.to(wide) - wanted.to(wide)).square().mean(-1)


def _yes_or_no(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean over labels that may each be true or not."""
    return _KL.apply(*(torch.stack([logits, torch.zeros_like(logits)], -1) for logits in (found, wanted))).mean(-1)


def _sum(
    found: Tensor, wanted: Tensor, distance: Callable[[Tensor, Tensor], Tensor], width: int | None = None
) -> Tensor:
    """Sums the distances of items, some at a time; what they need is made anew in the backward, and not held.

    Args:
        found: `[items, ...]`.
        wanted: The same, of the original.
        distance: Of some of them.
        width: Numbers that an item has at most.
    """
    size = max(1, LOGIT_BYTES // (4 * (width or found[:1].numel() or 1)))
    parts = [
        checkpoint(distance, piece, goal, use_reentrant=False, preserve_rng_state=False).sum()
        for piece, goal in zip(found.split(size), wanted.split(size), strict=True)
    ]
    return torch.stack(parts).sum()


def _states(model: PreTrainedModel, run: Callable[..., Any], batch: Batch) -> Tensor:
    """What the output embeddings would see, `[batch, tokens, d]`."""
    with few_logits(model) as seen:
        run(**inputs_of(batch))
    (states,) = seen
    return states


def _logits(model: PreTrainedModel, outputs: Any) -> dict[str, Tensor]:
    """All logits that a head returned, by name."""
    found = {
        name: tensor
        for name, tensor in float_outputs(outputs)
        if tensor.dim() > 1 and (name.endswith("logits") or name.startswith("logits_per"))
    }
    if not found:
        raise UnsupportedModelError(
            f"a {type(model).__name__} returns no logits: compare hidden_states or ffn_outputs, or load it with a head"
        )
    return found


def _items(
    model: PreTrainedModel, name: str, found: Tensor, wanted: Tensor, batch: Batch
) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]:
    """What to compare logits by, and those of each item that counts, `[items, numbers]`, of both models."""
    pair = (found, wanted)
    masks = [mask for mask in _masks(batch) if mask.shape == found.shape[:2]]
    if name in ("start_logits", "end_logits"):  # where in the text an answer is
        if masks:
            pair = tuple(logits.masked_fill(~masks[0], torch.finfo(logits.dtype).min) for logits in pair)  # type: ignore[assignment]
        return _KL.apply, *pair
    if found.dim() > 3:  # of each pixel
        pair = tuple(logits.movedim(1, -1).flatten(0, -2) for logits in pair)  # type: ignore[assignment]
    elif found.dim() == 3:
        pair = tuple(logits[masks[0]] if masks else logits.flatten(0, 1) for logits in pair)  # type: ignore[assignment]
    kind = getattr(model.config, "problem_type", None)
    if found.shape[-1] == 1 or kind == "regression":
        return _squares, *pair
    return _yes_or_no if kind == "multi_label_classification" else _KL.apply, *pair


def _masks(batch: Batch) -> Iterator[Tensor]:
    for decoder in (True, False):
        if (mask := token_mask(batch, decoder=decoder)) is not None:
            yield mask
