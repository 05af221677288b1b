"""What the power of the cluster sizes that P is may be."""

from __future__ import annotations

__all__ = ["is_power"]


def is_power(value: object) -> bool:
    """Whether a value can be the power of the cluster sizes that P is: a number from 0 to 1.

    Args:
        value: The value.
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
