"""Dynamics: how a fused model trains, in real steps, beside its original."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from ..data import Batch, as_batches
from ..errors import DataError
from .displacement import Displacement, displacements, ffn_inputs
from .pairs import reduced_pairs
from .short_run import critical_rate, trained

__all__ = ["Dynamics", "dynamics"]

_WINDOW = 20  # steps whose mean is a point of a smoothed curve; a fifth of all where these are few


@dataclass(frozen=True)
class Dynamics:
    """How a fused model and its original train with the same batches, rate and seed.

    Args:
        learning_rate: The rate, the same for all steps.
        displacements: How far the steps moved each fused FFN, on rows held out.
        original_displacements: The same in the original.
        losses: The fused model's loss before each step.
        original_losses: The original's.
        critical_rate: The rate at which the fused model's loss of fresh rows turns up along Adam's direction.
        original_critical_rate: The original's.
    """

    learning_rate: float
    displacements: Mapping[str, Displacement]
    original_displacements: Mapping[str, Displacement]
    losses: tuple[float, ...]
    original_losses: tuple[float, ...]
    critical_rate: float
    original_critical_rate: float

    @property
    def inner(self) -> float:
        """How far W1 moved the FFNs as a multiple of the original's, geometric mean over FFNs: 1 is as far."""
        return self._ratio("inner")

    @property
    def outer(self) -> float:
        """The same of W2."""
        return self._ratio("outer")

    @property
    def curvature(self) -> float:
        """How curved the FFNs' ways were as a multiple of the original's, geometric mean over FFNs."""
        return self._ratio("curvature")

    @property
    def loss_gap(self) -> float:
        """Mean distance of the two smoothed loss curves: 0 where one follows the other."""
        curves = zip(_smoothed(self.losses), _smoothed(self.original_losses), strict=True)
        gaps = [abs(found - wanted) for found, wanted in curves]
        return sum(gaps) / len(gaps)

    def ratios(self, name: str) -> Displacement:
        """How far one FFN was moved, as multiples of the original's; NaN where that did not move.

        Args:
            name: Its name.
        """
        own, other = self.displacements[name], self.original_displacements[name]
        return Displacement(*(_times(getattr(own, part), getattr(other, part)) for part in vars(own)))

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as plain JSON values, with the means; what is no number or infinite as null."""
        found = asdict(self) | {name: getattr(self, name) for name in ("inner", "outer", "curvature", "loss_gap")}
        return {name: _plain(value) for name, value in found.items()}

    def _ratio(self, part: str) -> float:
        ratios = [getattr(self.ratios(name), part) for name in self.displacements]
        known = [math.log(ratio) for ratio in ratios if ratio > 0]
        return math.exp(sum(known) / len(known)) if known else math.nan


def dynamics(
    original: PreTrainedModel,
    fused: PreTrainedModel,
    batches: Iterable[Batch],
    *,
    learning_rate: float = 2e-5,
    seed: int = 0,
) -> Dynamics:
    """Trains copies of both models a little, as Trainer does by default, and compares how they move.

    An NTK error tells what one infinitely small step of one sample would do. This tells what real steps of AdamW on
    minibatches do. Neither model is changed, nor are random states.

    Args:
        original: The model before fusion, with the same head.
        fused: The same after fusion (or after a baseline that leaves narrow FFNs).
        batches: Batches with labels, one a step; the last is held out, and measured on.
        learning_rate: The same for all steps.
        seed: Seed of the dropout.

    Raises:
        DataError: There are fewer than two batches, or a model gives no loss on them.
        UnsupportedModelError: The models do not belong together, or FFNs were made into thin factors.

    Example:
        >>> from hf_mlp_fusion.measure import dynamics
        >>> found = dynamics(model, fused, batches, learning_rate=1e-4)  # doctest: +SKIP
        >>> found.inner, found.outer  # doctest: +SKIP
        (1.58, 4.21)
    """
    *steps, held_out = [*as_batches(original, batches)] or [{}]
    if not steps:
        raise DataError("dynamics needs two batches or more: the last one is held out")
    names = [before.name for before, _ in reduced_pairs(original, fused)]
    moved, losses, critical = [], [], []
    for model in (original, fused):
        inputs = ffn_inputs(model, names, held_out)
        pupil, curve = trained(model, steps, learning_rate, seed)
        moved.append(displacements(model, pupil, inputs))
        del pupil
        losses.append(tuple(curve))
        critical.append(critical_rate(model, steps, held_out, seed))
    shared = [name for name in names if name in moved[0] and name in moved[1]]  # of experts, those that both reach
    return Dynamics(
        learning_rate=learning_rate,
        displacements={name: moved[1][name] for name in shared},
        original_displacements={name: moved[0][name] for name in shared},
        losses=losses[1],
        original_losses=losses[0],
        critical_rate=critical[1],
        original_critical_rate=critical[0],
    )


def _smoothed(losses: tuple[float, ...]) -> list[float]:
    window = max(1, min(_WINDOW, len(losses) // 5))
    return [sum(losses[start : start + window]) / window for start in range(0, len(losses) - window + 1, window)]


def _times(found: float, wanted: float) -> float:
    return found / wanted if wanted else math.nan


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
