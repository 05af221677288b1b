"""KL divergence of what a fused model's head says from what the original's says, without all logits at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data import (
    LANGUAGE_OBJECTIVES,
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
from .kl import completed, kl_divergence, squares, summed, yes_or_no
from .log_probabilities import logits_head, tokens_at_once

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
            with evaluating(self.original):
                goal, other = self._spoken(self.original, self.original, seen)
            found, head = self._spoken(self.fused, run, batch)

            def apart(piece: Tensor, wanted: Tensor) -> Tensor:
                with torch.no_grad():
                    logits = other(wanted)
                return kl_divergence(head(piece), logits.to(piece.device))

            return summed(found, (goal,), apart, _width(self.fused)), len(found)
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
            total = total + summed(found, (goal,), distance)
            items += len(found)
        return total, items

    def top(self, seen: Batch, count: int) -> tuple[Tensor, Tensor]:
        """What the original, a language model, predicts most.

        Args:
            seen: A batch on its device.
            count: How many tokens of the vocabulary, k.

        Returns:
            The token ids, int32, and their log-probabilities, `[batch, tokens, k]`; zeros for padding.
        """
        with evaluating(self.original):
            states, head = self._spoken(self.original, self.original, seen)
            size = tokens_at_once(self.original.get_output_embeddings())
            logits = (head(piece) for piece in states.split(size))
            found = [
                item.to(torch.promote_types(item.dtype, torch.float32)).log_softmax(-1).topk(count) for item in logits
            ]
        mask = _language_mask(self.original, seen)
        tokens = seen["decoder_input_ids" if self.original.config.is_encoder_decoder else "input_ids"]
        places = mask.expand(tokens.shape)
        chosen = torch.cat([item.values for item in found])
        values = chosen.new_zeros(*places.shape, count)
        ids = values.int()
        values[places] = chosen
        ids[places] = torch.cat([item.indices for item in found]).int()
        return ids, values

    def sums_of_top(self, run: Callable[..., Any], batch: Batch, ids: Tensor, values: Tensor) -> tuple[Tensor, int]:
        """As `sums`, from what `top` gave: over these tokens each, and all others together.

        Args:
            run: The fused model, or what wraps it.
            batch: The arguments of its forward.
            ids: Token ids, `[batch, tokens, k]`.
            values: Their log-probabilities in the original, likewise.
        """
        found, head = self._spoken(self.fused, run, batch)
        mask = _language_mask(self.fused, batch).expand(ids.shape[:2])

        def apart(piece: Tensor, tokens: Tensor, wanted: Tensor) -> Tensor:
            logits = head(piece)
            return kl_divergence(logits, completed(logits.detach(), tokens.long(), wanted))

        return summed(found, (ids[mask], values[mask]), apart, _width(self.fused)), len(found)

    def _spoken(
        self, model: PreTrainedModel, run: Callable[..., Any], batch: Batch
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """What becomes logits of each token that is no padding, `[tokens, ...]`, and by what."""
        head: Callable[[Tensor], Tensor]
        if self._pieces:
            with few_logits(model) as seen:
                run(**inputs_of(batch))
            (states,), head = seen, model.get_output_embeddings()
        else:
            states, head = run(**inputs_of(batch)).logits, nn.Identity()
        return states[_language_mask(model, batch).expand(states.shape[:2])], head


def _width(model: PreTrainedModel) -> int:
    return len(model.get_output_embeddings().weight)


def _language_mask(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Which tokens that a language model speaks of are no padding, bool, in what broadcasts to `[batch, tokens]`."""
    mask = token_mask(batch, decoder=model.config.is_encoder_decoder)
    return torch.ones(1, 1, dtype=torch.bool, device=next(iter(batch.values())).device) if mask is None else mask


def _logits(model: PreTrainedModel, outputs: Any) -> dict[str, Tensor]:
    """All logits that a head returned, by name."""
    found = {
        name: tensor
        for name, tensor in float_outputs(outputs)
        if tensor.dim() > 1 and (name.endswith("logits") or name.startswith("logits_per"))
    }
    if not found:
        raise UnsupportedModelError(
            f"a {type(model).__name__} returns no logits: compare hidden_states or ffn_outputs, or fuse a "
            "checkpoint that was saved with a head"
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
        return kl_divergence, *pair
    if found.dim() > 3:  # of each pixel
        pair = tuple(logits.movedim(1, -1).flatten(0, -2) for logits in pair)  # type: ignore[assignment]
    elif found.dim() == 3:
        pair = tuple(logits[masks[0]] if masks else logits.flatten(0, 1) for logits in pair)  # type: ignore[assignment]
    kind = getattr(model.config, "problem_type", None)
    if found.shape[-1] == 1 or kind == "regression":
        return squares, *pair
    return yes_or_no if kind == "multi_label_classification" else kl_divergence, *pair


def _masks(batch: Batch) -> Iterator[Tensor]:
    for decoder in (True, False):
        if (mask := token_mask(batch, decoder=decoder)) is not None:
            yield mask
