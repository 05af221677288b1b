"""Wanda (Sun et al., ICLR 2024, arXiv 2306.11695) on whole units: Wanda-sp of FLAP's paper (arXiv 2312.11983)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from ..data import Batch
from ..fusion import LayerReducer, ReducedFFN
from ..fusion.calibration import collect_moments
from ..recipe import FusionConfig
from ..tensors import FFNWeights, Moments
from .scored import Todo, best_units, from_data

__all__ = ["WANDA", "wanda_scores"]


def wanda_scores(weights: FFNWeights, moments: Moments) -> Tensor:
    """Wanda's |W_ji| ‖h_i‖ of the down projection, its mean over outputs j.

    Args:
        weights: The FFN.
        moments: Of its units, about the means or about zero.

    Returns:
        `[I]`, float64; ‖h_i‖ is the root mean square over tokens.
    """
    square = moments.gram.diagonal() + moments.h_mean.square()
    return weights.down.double().abs().mean(0) * square.clamp(min=0).sqrt()


def _prepare(model: PreTrainedModel, todo: Todo, config: FusionConfig, batches: Sequence[Batch]) -> LayerReducer:
    def reduce_layer(group: Todo) -> Mapping[str, ReducedFFN[FFNWeights]]:
        found = collect_moments(model, [ffn for ffn, _ in group], batches)
        reduced = {}
        for ffn, width in group:
            weights, moments = ffn.read(), found.get(ffn.name)
            kept = best_units(weights, None if moments is None else wanda_scores(weights, moments), width)
            reduced[ffn.name] = ReducedFFN(weights.picked(kept), None, "wanda", moments.count if moments else 0)
        return reduced

    return reduce_layer


WANDA = from_data("wanda", _prepare)
"""The same width everywhere; each layer is scored behind the narrow ones before it."""
