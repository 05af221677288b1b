"""How the units of FFNs went, one after another, and which widths that asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..modeling.ffn import FFN
from ..modeling.find import by_entry
from ..recipe import FusionConfig
from ..tensors import Elimination, allocate_widths

__all__ = ["Course", "fewest_units", "share_out"]


@dataclass(frozen=True)
class Course:
    """The course of an elimination.

    Args:
        tokens: Tokens that the moments are of.
        elimination: Which units went, and what that cost.
    """

    tokens: int
    elimination: Elimination

    @property
    def fewest(self) -> int:
        """The fewest units that it tells which to keep of."""
        return self.elimination.width - len(self.elimination.order)

    def on(self, device: torch.device) -> Course:
        """The same, on a device.

        Args:
            device: The device.
        """
        found = self.elimination
        return Course(self.tokens, Elimination(found.width, found.order.to(device), found.rise.to(device)))


def fewest_units(ffn: FFN, config: FusionConfig) -> int:
    """The fewest units that a search leaves an FFN.

    Args:
        ffn: The FFN.
        config: The recipe.
    """
    return min(config.multiple_of, ffn.width)


def share_out(ffns: Sequence[FFN], courses: Mapping[str, Course], budget: int, config: FusionConfig) -> dict[str, int]:
    """Gives each FFN the width that its error curve asks for; the errors add up over tokens and FFNs.

    Args:
        ffns: The FFNs.
        courses: Of each that saw a token how its elimination went, down to `fewest_units`, by name.
        budget: Units of all together.
        config: The recipe.

    Returns:
        The widths by name. The experts of a stack have one.
    """
    groups = by_entry(ffns)
    rises = []
    for group in groups:
        drops = group[0].width - fewest_units(group[0], config)
        rise = torch.zeros(drops + 1, dtype=torch.float64)
        for course in (courses[ffn.name] for ffn in group if ffn.name in courses):
            rise += course.tokens * course.elimination.rise[: drops + 1].cpu()
        rises.append(rise)
    full, sizes = [group[0].width for group in groups], [len(group) for group in groups]
    found = allocate_widths(rises, full, budget, config.multiple_of, sizes)
    return {ffn.name: width for group, width in zip(groups, found, strict=True) for ffn in group}
