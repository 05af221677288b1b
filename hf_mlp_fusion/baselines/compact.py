"""COMPACT (Kwek and Yin, arXiv 2509.06836): the units that common tokens drive most. Its FFN part alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data import Batch, unpadded
from ..errors import FusionConfigError, UnsupportedModelError
from ..modeling.ffn import FFN
from ..recipe import FusionConfig
from .activations import unit_sums
from .scored import Todo, by_scores

__all__ = ["COMPACT", "common_tokens", "compact_scores"]

_COMMON = 0.9  # of the tokens that are read: what the vocabulary's common part makes up


def common_tokens(batches: Sequence[Batch], share: float = _COMMON) -> Tensor:
    """Ids of the most frequent tokens, as many as make up a share of all.

    Args:
        batches: Batches without padding.
        share: The share.

    Returns:
        `[tokens]`, int64, the most frequent first; of equally frequent ones the lower id.

    Raises:
        FusionConfigError: The batches hold no tokens.
    """
    names = ("input_ids", "decoder_input_ids")
    ids = [batch[name].flatten().cpu() for batch in batches for name in names if name in batch]
    if not ids:
        raise FusionConfigError("compact weighs tokens by how common they are, and the model reads none: leave it out")
    found, counts = torch.cat(ids).unique(return_counts=True)
    counts, order = counts.sort(descending=True, stable=True)
    before = counts.cumsum(0) - counts
    return found[order[before < share * counts.sum()]]


def compact_scores(
    model: PreTrainedModel, todo: Todo, config: FusionConfig, batches: Sequence[Batch]
) -> Mapping[str, Tensor]:
    """The paper's common_act²: the squared activation of each unit, over the common tokens alone.

    In the paper the common tokens are those that stay when it shrinks the vocabulary too. Here it keeps all; common
    are the most frequent ones that make up nine tenths of the calibration rows.

    Args:
        model: The model.
        todo: Its FFNs.
        config: The recipe.
        batches: The rows.

    Returns:
        Mean squares by FFN, `[I]`.

    Raises:
        UnsupportedModelError: An FFN is an expert, which is not told which tokens it sees.
    """
    ffns = [ffn for ffn, _ in todo]
    if any(ffn.expert is not None for ffn in ffns):
        raise UnsupportedModelError("compact weighs tokens, and experts are not told which they see: leave it out")
    rows = list(unpadded(batches))
    common = common_tokens(rows).to(model.device)

    def weigh(ffn: FFN, batch: Batch, hidden: Tensor) -> Tensor:
        ids = batch.get("decoder_input_ids" if ffn.stack == "decoder" else "input_ids")
        if ids is None or ids.numel() != hidden.shape[:-1].numel():
            raise FusionConfigError(f"compact weighs tokens, and {ffn.name} sees something else: leave it out")
        return torch.isin(ids, common).reshape(hidden.shape[:-1]).to(hidden)

    return {name: item.mean_square for name, item in unit_sums(model, ffns, rows, weigh).items()}


COMPACT = by_scores("compact", compact_scores)
"""The same width everywhere."""
