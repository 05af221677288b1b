"""The errors and the warning that users meet; every message names the mend."""

from __future__ import annotations

__all__ = [
    "BrokenCheckpointError",
    "DataError",
    "FusionConfigError",
    "FusionError",
    "FusionWarning",
    "HubError",
    "MemoryLimitError",
    "UnsupportedModelError",
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


class HubError(FusionError, OSError):
    """The Hub could not be reached, or refused what was asked of it. Nothing there was changed."""


class FusionWarning(UserWarning):
    """Something legal that is likely to cost quality."""
