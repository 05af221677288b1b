"""Log-probabilities of labels without the logits of all tokens at once, which may be most of what a model needs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data import LANGUAGE_OBJECTIVES, LOGIT_BYTES, Batch, inputs_of, objective_of
from .scalars import scalar_outputs, token_log_probabilities

__all__ = ["LabelScores"]

_PROBE = 8  # tokens that tell whether logits are what the output embeddings give


class LabelScores:
    """Log-probabilities of labels, and gradients of the scalar outputs, in pieces of tokens where the model allows it.

    A stock forward cannot be stopped before its output embeddings, but what these see can be taken from it: they are
    shown no token, and the forward ends with no logits. Where a model does more to its logits (Gemma 2 caps them), the
    forward is run as it is, and what it returns is held for one batch.

    Args:
        model: The model, in eval mode.
        batch: Some of what it will be run on; its first row tells whether the model allows it.
    """

    def __init__(self, model: PreTrainedModel, batch: Batch) -> None:
        self.model = model
        self.objective = objective_of(model)
        self.head: nn.Module | None = None
        if self.objective in LANGUAGE_OBJECTIVES:
            head = model.get_output_embeddings()
            row = {name: tensor[:1] for name, tensor in batch.items()}
            self.head = head if head is not None and _gives_the_logits(model, head, row) else None

    def log_probabilities(self, batch: Batch) -> Tensor:
        """The log-probabilities of the labels that count, `[labels]`, without gradients.

        Args:
            batch: A batch with labels.
        """
        with torch.no_grad():
            if self.head is None:
                logits = self.model(**inputs_of(batch)).logits
                values, counted = token_log_probabilities(logits, batch["labels"], causal=self._causal)
                return values[counted]
            states, labels, _ = self._seen(self.head, batch)
            return torch.cat([states.new_zeros(0), *(chosen for _, chosen in self._pieces(states, labels))])

    def backward(self, batch: Batch) -> None:
        """Runs the backward of the sum of a batch's scalar outputs (`scalar_outputs`).

        Args:
            batch: The batch.
        """
        with torch.enable_grad():
            if self.head is None:
                output = scalar_outputs(self.model)(self.model, batch).sum()
                if output.requires_grad:
                    output.backward()
                return
            states, labels, counts = self._seen(self.head, batch)
            # The backward of the head comes first, piece by piece, so that only its result is held.
            gradients: list[Tensor] = []
            start = 0
            for piece, chosen in self._pieces(states.detach(), labels):
                mean = (chosen / counts[start : start + len(chosen)]).sum()
                gradients += torch.autograd.grad(mean, piece)
                start += len(chosen)
            if gradients and states.requires_grad:
                states.backward(torch.cat(gradients))

    @property
    def _causal(self) -> bool:
        return self.objective == "causal"

    def _seen(self, head: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """What the head sees of the labels that count, `[labels, d]`; the labels; and how many each one's row has."""
        states, _ = _run(self.model, head, batch, 0)
        labels = batch["labels"]
        if self._causal:
            states, labels = states[:, :-1], labels[:, 1:]
        counted = labels != -100
        counts = counted.sum(-1, keepdim=True).expand_as(labels)
        return states[counted], labels[counted], counts[counted]

    def _pieces(self, states: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields pieces of what the head sees, each with the log-probabilities of its labels."""
        assert self.head is not None
        weight = self.head.weight
        assert isinstance(weight, Tensor)
        size = max(1, LOGIT_BYTES // (4 * len(weight)))
        for piece, wanted in zip(states.split(size), labels.split(size), strict=True):
            if torch.is_grad_enabled():
                piece.requires_grad_()
            values, _ = token_log_probabilities(self.head(piece)[None], wanted[None], causal=False)
            yield piece, values[0]


def _run(model: PreTrainedModel, head: nn.Module, batch: Batch, tokens: int) -> tuple[Tensor, Tensor]:
    """What the head sees, `[batch, tokens, d]`, and the logits of the first tokens."""
    seen: list[Tensor] = []

    def show(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(arguments[0])
        return (arguments[0][:, :tokens], *arguments[1:])

    hook = head.register_forward_pre_hook(show)
    try:
        logits = model(**inputs_of(batch)).logits
    finally:
        hook.remove()
    (states,) = seen
    return states, logits


def _gives_the_logits(model: PreTrainedModel, head: nn.Module, row: Batch) -> bool:
    """Whether the logits are what the head returns, and a forward in which it sees no token runs."""
    try:
        with torch.no_grad():
            states, logits = _run(model, head, row, _PROBE)
            alike = states.dim() == 3 and torch.equal(head(states[:, :_PROBE]), logits)
            return alike and _run(model, head, row, 0)[0].shape == states.shape
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False
