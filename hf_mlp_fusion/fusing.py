"""What fusion does to the FFNs of one layer, with calibration data or without."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel

from .calibration import collect_moments
from .clustering import CLUSTERINGS, inertia
from .config import FusionConfig
from .data import Batch
from .driver import ReducedFFN
from .ffn import FFN
from .moments import Moments
from .reduction import Fusion, fuse_weights, select_units
from .refit import ridge_refit
from .selection import assign_units, obs_select

__all__ = ["fuse_layer"]

logger = logging.getLogger(__name__)


def fuse_layer(
    model: PreTrainedModel, group: Sequence[tuple[FFN, int]], config: FusionConfig, batches: Sequence[Batch] | None
) -> dict[str, ReducedFFN[Fusion]]:
    """Fuses the FFNs of one layer: one, or the experts of a mixture. The model is not changed.

    Args:
        model: The model, its earlier FFNs fused already: what calibrates the next ones is what they will see.
        group: FFNs of the layer, each with the units to keep.
        config: The recipe, its `selection` and `refit` resolved.
        batches: Calibration data, where the recipe has a use for them.

    Returns:
        The fused FFNs by name.
    """
    if config.selection == "obs":
        assert batches is not None
        moments = collect_moments(model, [ffn for ffn, _ in group], batches)
        return {ffn.name: _select(ffn, width, config, moments.get(ffn.name)) for ffn, width in group}
    plain = {ffn.name: _cluster(ffn, width, config) for ffn, width in group}
    if config.refit == "none":
        return plain
    assert batches is not None
    units = {name: item.weights.weights for name, item in plain.items()}
    moments = collect_moments(model, [ffn for ffn, _ in group], batches, units)
    return {
        name: _refitted(item, moments[name], config) if _enough(name, item, moments) else item
        for name, item in plain.items()
    }


def _cluster(ffn: FFN, width: int, config: FusionConfig) -> ReducedFFN[Fusion]:
    weights = ffn.read()
    features = weights.features()
    labels = CLUSTERINGS[config.clustering](features, width, config.seed)
    return ReducedFFN(fuse_weights(weights, labels), inertia(features, labels), "clusters")


def _select(ffn: FFN, width: int, config: FusionConfig, moments: Moments | None) -> ReducedFFN[Fusion]:
    """Keeps real units. Fewer tokens than units say too little of which: such an expert is fused without data."""
    weights = ffn.read()
    if moments is None or moments.count < weights.width:
        _say_too_few(ffn.name, moments)
        return _cluster(ffn, width, config)
    kept, _ = obs_select(moments, width)
    labels = assign_units(moments, kept)
    chosen = ReducedFFN(
        select_units(weights, kept.cpu().numpy(), labels), inertia(weights.features(), labels), config.selection
    )
    return _refitted(chosen, moments.of_units(kept), config)


def _refitted(item: ReducedFFN[Fusion], moments: Moments, config: FusionConfig) -> ReducedFFN[Fusion]:
    """Refits the down projection on the moments of the fused units, shrunk to what it was."""
    fused, sizes = item.weights.weights, item.weights.cluster_sizes.double()
    prior = fused.down.double().cpu() * sizes
    moments = moments.on_cpu()
    if config.refit == "output":
        weight, bias = ridge_refit(moments, prior)
    else:
        weight, bias = prior, moments.y_mean - prior @ moments.h_mean
    refitted = fused.with_down(weight / sizes, bias)
    return ReducedFFN(
        Fusion(refitted, item.weights.cluster_sizes),
        item.inertia_share,
        f"{item.method}+{config.refit}",
        moments.count,
        moments.error(weight),
    )


def _enough(name: str, item: ReducedFFN[Fusion], moments: Mapping[str, Moments]) -> bool:
    if name in moments and moments[name].count >= item.weights.weights.width:
        return True
    _say_too_few(name, moments.get(name))
    return False


def _say_too_few(name: str, moments: Moments | None) -> None:
    count = 0 if moments is None else moments.count
    logger.warning("%s saw %d calibration tokens, too few: it is fused without them", name, count)
