"""Log-probabilities of labels without the logits of all tokens at once, which may be most of what a model needs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data import LANGUAGE_OBJECTIVES, LOGIT_BYTES, Batch, few_logits, in_pieces, inputs_of, logits_of, objective_of
from .scalars import scalar_outputs, token_log_probabilities

__all__ = ["LabelScores", "logits_head", "tokens_at_once"]

_PROBE = 8  # tokens that tell whether logits are what the output embeddings give


class LabelScores:
    """Log-probabilities of labels, and gradients of the scalar outputs, in pieces of tokens where the model allows it.

    What the output embeddings see is taken from a forward that ends with the logits of a token (`few_logits`); they
    are then shown it piece by piece. Where a model does more to its logits (Gemma 2 caps them), the forward is run as
    it is, and what it returns is held for one batch.

    Args:
        model: The model, in eval mode.
        batch: Some of what it will be run on; its first row tells whether the model allows it.
    """

    def __init__(self, model: PreTrainedModel, batch: Batch) -> None:
        self.model = model
        self.objective = objective_of(model)
        wanted = self.objective in LANGUAGE_OBJECTIVES and "labels" in batch
        self.head = logits_head(model, batch) if wanted else None

    def log_probabilities(self, batch: Batch) -> Tensor:
        """The log-probabilities of the labels that count, `[labels]`, without gradients.

        Args:
            batch: A batch with labels.
        """
        with torch.no_grad():
            if self.head is None:
                logits = logits_of(self.model(**inputs_of(batch)))
                values, counted = token_log_probabilities(logits, batch["labels"], causal=self._causal)
                return values[counted]
            states, labels, _ = self._seen(batch)
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
            states, labels, counts = self._seen(batch)
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

    def _seen(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """What the head sees of the labels that count, `[labels, d]`; the labels; and how many each one's row has."""
        states, _ = _run(self.model, batch)
        labels = batch["labels"]
        if self._causal:
            states, labels = states[:, :-1], labels[:, 1:]
        counted = labels != -100
        counts = counted.sum(-1, keepdim=True).expand_as(labels)
        return states[counted], labels[counted], counts[counted]

    def _pieces(self, states: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields pieces of what the head sees, each with the log-probabilities of its labels."""
        assert self.head is not None
        size = tokens_at_once(self.head)
        for piece, wanted in zip(states.split(size), labels.split(size), strict=True):
            if torch.is_grad_enabled():
                piece.requires_grad_()
            values, _ = token_log_probabilities(self.head(piece)[None], wanted[None], causal=False)
            yield piece, values[0]


def _run(model: PreTrainedModel, batch: Batch, tokens: int = 1) -> tuple[Tensor, Tensor]:
    """What the head would have seen, `[batch, tokens, d]`, and the logits of the first tokens."""
    with few_logits(model, tokens) as seen:
        logits = logits_of(model(**inputs_of(batch)))
    (states,) = seen
    return states, logits


def tokens_at_once(head: nn.Module) -> int:
    """Tokens whose logits are held at once.

    Args:
        head: The output embeddings.
    """
    weight = head.weight
    assert isinstance(weight, Tensor)
    return max(1, LOGIT_BYTES // (4 * len(weight)))


def logits_head(model: PreTrainedModel, batch: Batch) -> nn.Module | None:
    """The output embeddings of a language model, where its logits are what they return; None where they are not.

    Args:
        model: The model, in eval mode.
        batch: Some of what it will be run on; its first row is run.
    """
    head = model.get_output_embeddings()
    if head is None:
        return None
    row = next(in_pieces([batch], 1))
    # Autocast would keep its copies of the weights, made here without gradients, for what is trained thereafter.
    with torch.no_grad(), torch.autocast(next(iter(row.values())).device.type, enabled=False):
        try:
            states, logits = _run(model, row, _PROBE)
        except ValueError:  # it is called more than once, or not at all
            return None
        return head if states.dim() == 3 and torch.equal(head(states[:, :_PROBE]), logits) else None
