"""FLAP (An et al., AAAI 2024, arXiv 2312.11983): the units whose activations fluctuate least become their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data import Batch
from ..fusion import LayerReducer, ReducedFFN
from ..recipe import FusionConfig
from ..tensors import FFNWeights
from .activations import UnitSums, unit_sums
from .scored import Todo, best_units, from_data, shared_widths

__all__ = ["FLAP", "fluctuations", "standardized", "without_units"]


def fluctuations(weights: FFNWeights, sums: UnitSums) -> Tensor:
    """The paper's metric (WIFV): variance of each unit's activation times the squared norm of its output weights.

    Args:
        weights: The FFN.
        sums: What its units computed.

    Returns:
        `[I]`, float64.
    """
    variance = (sums.mean_square - sums.mean.square()).clamp(min=0)
    return variance * weights.down.double().square().sum(0)


def standardized(scores: Tensor) -> Tensor:
    """Scores with mean 0 and deviation 1, by which units of different layers compete; 0 where all are equal.

    Args:
        scores: Of one FFN, `[I]`.
    """
    deviation = scores.std()
    return (scores - scores.mean()) / deviation if deviation > 0 else torch.zeros_like(scores)


def without_units(weights: FFNWeights, kept: Tensor, mean: Tensor) -> FFNWeights:
    """Some of the units, and in the output bias, where the FFN has one, what the others are in the mean.

    Args:
        weights: The FFN.
        kept: The units that stay, `[k]`, int64.
        mean: The mean activation of each unit, `[I]`.
    """
    small = weights.picked(kept.numpy())
    if weights.down_bias is None:
        return small
    gone = torch.ones(weights.width, dtype=torch.bool, device=mean.device)
    gone[kept.to(mean.device)] = False
    bias = weights.down_bias.double() + weights.down.double() @ (mean * gone)
    return small.with_down(small.down, bias)


def _prepare(model: PreTrainedModel, todo: Todo, config: FusionConfig, batches: Sequence[Batch]) -> LayerReducer:
    sums = unit_sums(model, [ffn for ffn, _ in todo], batches)
    scores = {ffn.name: fluctuations(ffn.read(), sums[ffn.name]) for ffn, _ in todo if ffn.name in sums}
    widths = shared_widths({name: standardized(item) for name, item in scores.items()}, todo, config)

    def reduce_layer(group: Todo) -> Mapping[str, ReducedFFN[FFNWeights]]:
        reduced = {}
        for ffn, _ in group:
            weights, seen = ffn.read(), sums.get(ffn.name)
            kept = torch.from_numpy(best_units(weights, scores.get(ffn.name), widths[ffn.name]))
            small = weights.picked(kept.numpy()) if seen is None else without_units(weights, kept, seen.mean)
            reduced[ffn.name] = ReducedFFN(small, None, "flap", int(seen.count) if seen else 0)
        return reduced

    return reduce_layer


FLAP = from_data("flap", _prepare)
"""Widths are shared out by standardized metrics over all FFNs, as the paper does. What goes is made up for in the
output bias; the paper adds one to models that have none, which stock modules have no place for: there it is lost."""
