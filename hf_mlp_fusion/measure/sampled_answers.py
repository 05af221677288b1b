"""Gradients by answers that a model draws from its own predictions: the Fisher information, without labels."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data import LANGUAGE_OBJECTIVES, Batch, few_logits, inputs_of, logits_of, objective_of, token_mask
from .log_probabilities import logits_head, tokens_at_once
from .scalars import sampled_log_likelihood

__all__ = ["SampledAnswers"]


class SampledAnswers:
    """Log-likelihoods of answers drawn from what a model's logits say, their gradients piece by piece if possible.

    Args:
        model: The model, in eval mode.
        batch: Some of what it will be run on; its first row tells whether logits come in pieces.

    Attributes:
        whole: Whether the logits of all tokens are there at once.
    """

    def __init__(self, model: PreTrainedModel, batch: Batch) -> None:
        self.model = model
        self._head = logits_head(model, batch) if objective_of(model) in LANGUAGE_OBJECTIVES else None
        self.whole = self._head is None

    def backward(self, batch: Batch, generator: torch.Generator) -> None:
        """Runs the backward of the summed log-likelihood of a batch's answers.

        The expected outer product of such gradients is the Fisher information. Every token answers that is no padding,
        or every row, where the head answers for rows.

        Args:
            batch: The batch; labels in it are not looked at.
            generator: Draws the answers; on the model's device.
        """
        mask = token_mask(batch, decoder="decoder_input_ids" in batch)
        with torch.enable_grad():
            if self._head is None:
                logits = logits_of(self.model(**inputs_of(batch)))
                if not logits.requires_grad:
                    return
                of_tokens = mask is not None and logits.shape[:-1] == mask.shape
                sampled_log_likelihood(logits[mask] if of_tokens else logits, self.model, generator).backward()
                return
            with few_logits(self.model) as seen:
                self.model(**inputs_of(batch))
            (states,) = seen
            states = states.flatten(0, -2) if mask is None else states[mask]
            # The backward of the head comes first, piece by piece, so that only its result is held.
            gradients: list[Tensor] = []
            for piece in states.detach().split(tokens_at_once(self._head)):
                piece.requires_grad_()
                likelihood = sampled_log_likelihood(self._head(piece), self.model, generator)
                gradients += torch.autograd.grad(likelihood, piece)
            if gradients and states.requires_grad:
                states.backward(torch.cat(gradients))
