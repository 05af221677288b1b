"""NIRVANA (Ai et al., arXiv 2509.14230): the saliency that keeps the NTK under Adam, on the units of FFNs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data import Batch, inputs_of, logits_of, row_count
from ..recipe import FusionConfig
from .saliency import backward_each, gradients_of
from .scored import Todo, by_scores

__all__ = ["NIRVANA", "nirvana_scores"]


def nirvana_scores(
    model: PreTrainedModel, todo: Todo, config: FusionConfig, batches: Sequence[Batch]
) -> Mapping[str, Tensor]:
    """The sum of |∂f/∂w · w| over a unit's weights: how far the output and Adam's kernel move, to first order.

    f is as in the authors' code: the largest logit over a row's tokens, its mean over the vocabulary and the rows (of
    heads without tokens, the mean logit). Attention heads, which the paper prunes too, stay, and the rows are those
    given, not chosen by KL.

    Args:
        model: The model.
        todo: Its FFNs.
        config: The recipe.
        batches: The rows.

    Returns:
        Saliencies by FFN, `[I]`.
    """
    rows = sum(map(row_count, batches))

    def output(example: Batch) -> Tensor:
        logits = logits_of(model(**inputs_of(example)))
        strongest = logits.amax(1) if logits.dim() > 2 else logits
        return strongest.mean(dtype=torch.promote_types(logits.dtype, torch.float32)) * (len(logits) / rows)

    backward_each(model, [ffn for ffn, _ in todo], batches, output)
    scores = {
        ffn.name: (gradients_of(ffn).features() * ffn.read().features()).double().abs().sum(1) for ffn, _ in todo
    }
    model.zero_grad(set_to_none=True)
    return scores


NIRVANA = by_scores("nirvana", nirvana_scores, share_out=True)
"""Units of all FFNs compete by their saliencies as they are, as in the paper: that is its allocation over layers."""
