"""`Rows`: some output units of a linear map, where one parameter holds several projections."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Rows"]


@dataclass(frozen=True)
class Rows:
    """A range of the output units of a linear map: rows of its weight in the layout of `nn.Linear`, or of its bias.

    Args:
        parameter: Name of the weight or bias in the full model.
        start: First unit.
        stop: Behind the last unit.
        expert: The expert whose units they are, in a parameter that holds a stack of experts.
    """

    parameter: str
    start: int
    stop: int
    expert: int | None = None
