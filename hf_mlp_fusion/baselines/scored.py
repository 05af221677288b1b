"""Methods that keep real units by scores on calibration data: the rows that calibrated fusion chooses its units by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data import Batch
from ..errors import FusionConfigError
from ..fusion import LayerReducer, Method, ReducedFFN, calibration_batches, reduce_ffns
from ..fusion.calibration import hold_out
from ..modeling.ffn import FFN
from ..modeling.find import by_entry
from ..recipe import FusionConfig
from ..tensors import FFNWeights, allocate_widths
from .prune import unit_magnitudes

__all__ = ["Prepare", "Todo", "best_units", "by_scores", "check_data", "from_data", "shared_widths"]

Todo = Sequence[tuple[FFN, int]]
"""FFNs to reduce, each with the units to keep."""

Prepare = Callable[[PreTrainedModel, Todo, FusionConfig, Sequence[Batch]], LayerReducer]
"""Takes the model whose FFNs will be reduced, the FFNs, the recipe and the data; returns what reduces a layer."""

Scores = Callable[[PreTrainedModel, Todo, FusionConfig, Sequence[Batch]], Mapping[str, Tensor]]
"""Takes the same, and returns a score of each unit, `[I]`, by FFN; of the FFNs that saw no token, none."""


def check_data(calibration: Any) -> None:
    """Refuses to go on without calibration data."""
    if calibration is None:
        raise FusionConfigError("this method needs calibration data: pass calibration=")


def from_data(name: str, prepare: Prepare) -> Callable[[PreTrainedModel, FusionConfig, Any], Any]:
    """A method that leaves narrow FFNs and looks at calibration data.

    Args:
        name: Its name.
        prepare: See `Prepare`.
    """

    def reduce(model: PreTrainedModel, config: FusionConfig, calibration: Any) -> Any:
        check_data(calibration)
        batches, _ = hold_out(calibration_batches(model, calibration))
        method = Method(name, "narrow", lambda working, todo, config: prepare(working, todo, config, batches))
        return reduce_ffns(model, config, method)

    return reduce


def by_scores(
    name: str, score: Scores, *, share_out: bool = False
) -> Callable[[PreTrainedModel, FusionConfig, Any], Any]:
    """A method that keeps the units of the highest scores.

    Args:
        name: Its name.
        score: See `Scores`.
        share_out: Units of all FFNs compete; the recipe's widths say how many stay of all together.
    """

    def prepare(model: PreTrainedModel, todo: Todo, config: FusionConfig, batches: Sequence[Batch]) -> LayerReducer:
        scores = score(model, todo, config, batches)
        widths = shared_widths(scores, todo, config) if share_out else {ffn.name: width for ffn, width in todo}

        def reduce_layer(group: Todo) -> Mapping[str, ReducedFFN[FFNWeights]]:
            reduced = {}
            for ffn, _ in group:
                weights = ffn.read()
                kept = best_units(weights, scores.get(ffn.name), widths[ffn.name])
                reduced[ffn.name] = ReducedFFN(weights.picked(kept), None, name)
            return reduced

        return reduce_layer

    return from_data(name, prepare)


def best_units(weights: FFNWeights, scores: Tensor | None, width: int) -> np.ndarray:
    """The units of the highest scores, in ascending order; of equal ones those of the largest weights.

    Args:
        weights: The FFN.
        scores: `[I]`; without them the weights alone decide.
        width: Units to keep.
    """
    keys = [unit_magnitudes(weights), *([] if scores is None else [scores])]
    return np.sort(np.lexsort([key.double().cpu().numpy() for key in keys])[-width:])


def shared_widths(scores: Mapping[str, Tensor], todo: Todo, config: FusionConfig) -> dict[str, int]:
    """Widths of FFNs whose units compete with those of all others, in steps that suit the recipe's rounding.

    Args:
        scores: Scores of one unit of measure, `[I]`, by FFN. Experts of a stack get one width, by their sums.
        todo: All FFNs, each with its part of the units that stay.
        config: The recipe.

    Returns:
        The widths by FFN; together as many units as in `todo`, and at least one step each.
    """
    groups = by_entry(ffn for ffn, _ in todo)
    step = math.gcd(config.multiple_of, *(width for _, width in todo))
    least = min((float(values.min()) for values in scores.values()), default=0.0)

    def rise(ffn: FFN) -> Tensor:
        """What goes with the worst 0, 1, ... units."""
        if ffn.name not in scores:
            return torch.zeros(ffn.width - min(step, ffn.width) + 1, dtype=torch.float64)
        ascending = (scores[ffn.name].double().cpu() - least).sort().values
        return torch.nn.functional.pad(ascending.cumsum(0), (1, 0))[: ffn.width - min(step, ffn.width) + 1]

    rises = [torch.stack([rise(ffn) for ffn in group]).sum(0) for group in groups]
    full, counts = [group[0].width for group in groups], [len(group) for group in groups]
    found = allocate_widths(rises, full, sum(width for _, width in todo), step, counts)
    return {ffn.name: width for group, width in zip(groups, found, strict=True) for ffn in group}
