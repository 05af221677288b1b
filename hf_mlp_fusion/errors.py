"""The errors and the warning that users meet; every message names the mend."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "BrokenCheckpointError",
    "DataError",
    "DiskLimitError",
    "FusionConfigError",
    "FusionError",
    "FusionWarning",
    "HubError",
    "MemoryLimitError",
    "UnsupportedModelError",
    "check_choice",
    "is_memory_shortage",
]


class FusionError(Exception):
    """Base of all errors of this package."""


class FusionConfigError(FusionError, ValueError):
    """A recipe, or a recipe and a model together, that cannot be carried out."""


class UnsupportedModelError(FusionError, ValueError):
    """A model whose FFNs this package cannot fuse (unknown family, already fused, wrapped, quantized)."""


class BrokenCheckpointError(FusionError, ValueError):
    """Files that contradict each other, lack what a fused model needs, or belong to a model of other widths."""


class DataError(FusionError, ValueError):
    """Texts, or texts and a model together, from which nothing can be measured."""


class MemoryLimitError(FusionError, MemoryError):
    """Work that takes more memory than there is. It was not started, or nothing of it was kept."""


class DiskLimitError(FusionError, OSError):
    """Work that writes more than there is room for on the disk. It was not started."""


class HubError(FusionError, OSError):
    """The Hub could not be reached, or refused what was asked of it. Nothing there was changed."""


class FusionWarning(UserWarning):
    """Something legal that is likely to cost quality."""


def is_memory_shortage(error: BaseException) -> bool:
    """Whether an error, of whichever library, says that memory has run out."""
    words = ("can't allocate memory", "cannot allocate memory", "out of memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Checks that an option is one of those that there are.

    Args:
        name: What the option is called.
        value: What was given.
        choices: What may be.

    Raises:
        FusionConfigError: It is none of them.
    """
    listed = [*choices]
    if value not in listed:
        raise FusionConfigError(f"{name} must be one of {', '.join(map(repr, listed))}, not {value!r}")
