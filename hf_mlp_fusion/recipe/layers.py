"""The `layers=` language: which layers of a stack, or which FFN names, a recipe speaks of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from ..errors import FusionConfigError

__all__ = ["check_layers", "select_layers"]

_HELP = (
    'write "all", "last:8", "first:4", a range "4:12", a list of layer numbers [4, 5], or FFN name patterns '
    'such as "encoder.layer.1?"'
)
_COUNTED = re.compile(r"(last|first):(\d+)")
_RANGE = re.compile(r"(-?\d*):(-?\d*)")


def check_layers(layers: object) -> str | list[int] | list[str]:
    """Checks the form of a `layers` value; what it selects depends on the model.

    Returns:
        The value, a tuple turned into a list.

    Raises:
        FusionConfigError: The value has none of the forms.
    """
    if isinstance(layers, str):
        counted = _COUNTED.fullmatch(layers)
        if counted and int(counted[2]) == 0:
            raise FusionConfigError(f"layers={layers!r} selects nothing: {_HELP}")
        if not layers or (":" in layers and not counted and not _RANGE.fullmatch(layers)):
            raise FusionConfigError(f"layers={layers!r} is not understood: {_HELP}")
        return layers
    if isinstance(layers, Sequence) and layers:
        items = list(layers)
        if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
            return items
        if all(isinstance(item, str) and item and ":" not in item for item in items):
            return items
    raise FusionConfigError(f"layers={layers!r} is not understood: {_HELP}")


def select_layers(layers: str | list[int] | list[str], stacks: dict[str, int], names: Sequence[str]) -> set[str]:
    """Resolves a `layers` value against a model.

    Args:
        layers: A value that passed `check_layers`.
        stacks: The number of layers of each stack (`{"": 12}`, or `{"encoder": 4, "decoder": 4}`).
        names: The FFN names, for name patterns.

    Returns:
        `"stack.number"` of each selected layer (`".4"` in a model of one stack), or for name patterns the FFN names.

    Raises:
        FusionConfigError: The value names layers or FFNs that the model does not have.
    """
    if isinstance(layers, str):
        counted, span = _COUNTED.fullmatch(layers), _RANGE.fullmatch(layers)
        if layers != "all" and not counted and not span:
            layers = [layers]
    if isinstance(layers, list) and isinstance(layers[0], str):
        chosen: set[str] = set()
        for pattern in layers:
            matched = {name for name in names if fnmatchcase(name, str(pattern))}
            if not matched:
                raise FusionConfigError(
                    f"layers: no FFN has a name like {pattern!r}; names here are {names[0]!r} to {names[-1]!r}"
                )
            chosen |= matched
        return chosen
    return {f"{stack}.{number}" for stack, count in stacks.items() for number in _numbers(layers, stack, count)}


def _numbers(layers: str | list[int] | list[str], stack: str, count: int) -> list[int]:
    where = f"the {stack}" if stack else "the model"
    if isinstance(layers, list):
        for number in layers:
            if not -count <= int(number) < count:
                raise FusionConfigError(f"layers: {where} has layers 0 to {count - 1}, not {number}")
        return [int(number) % count for number in layers]
    if layers == "all":
        return list(range(count))
    if counted := _COUNTED.fullmatch(layers):
        wanted = int(counted[2])
        if wanted > count:
            raise FusionConfigError(f"layers={layers!r}: {where} has {count} layers; write 'all' or a smaller number")
        return list(range(count))[-wanted:] if counted[1] == "last" else list(range(wanted))
    first, last = layers.split(":")
    chosen = list(range(count))[int(first) if first else None : int(last) if last else None]
    if not chosen:
        raise FusionConfigError(f"layers={layers!r} selects nothing: {where} has layers 0 to {count - 1}")
    for end in (first, last):
        if end and not -count <= int(end) <= count:
            raise FusionConfigError(
                f"layers={layers!r}: {where} has layers 0 to {count - 1}, so a range ends at {count}"
            )
    return chosen
