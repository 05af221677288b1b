"""MLP Fusion for Hugging Face models: narrower FFNs and experts that keep the training dynamics.

Importing this package registers the fused model types with transformers' Auto classes. Everything else is imported
when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register_family

if TYPE_CHECKING:
    from .config import FusionConfig
    from .errors import BrokenCheckpointError, FusionConfigError, FusionError, FusionWarning, UnsupportedModelError
    from .export import export_plain
    from .folding import fold, unfold
    from .fuse import fuse_model
    from .kernel_size import calibrate_ntk
    from .modules import ClusterScaling, FusedMLP
    from .report import FusionReport
    from .routers import freeze_routers, router_losses

__version__ = "0.1.0"

_LAZY = {
    "BrokenCheckpointError": "errors",
    "ClusterScaling": "modules",
    "FusedMLP": "modules",
    "FusionConfig": "config",
    "FusionConfigError": "errors",
    "FusionError": "errors",
    "FusionReport": "report",
    "FusionWarning": "errors",
    "UnsupportedModelError": "errors",
    "calibrate_ntk": "kernel_size",
    "export_plain": "export",
    "fold": "folding",
    "freeze_routers": "routers",
    "fuse_model": "fuse",
    "router_losses": "routers",
    "unfold": "folding",
}

__all__ = [
    "BrokenCheckpointError",
    "ClusterScaling",
    "FusedMLP",
    "FusionConfig",
    "FusionConfigError",
    "FusionError",
    "FusionReport",
    "FusionWarning",
    "UnsupportedModelError",
    "calibrate_ntk",
    "export_plain",
    "fold",
    "freeze_routers",
    "fuse_model",
    "register_family",
    "router_losses",
    "unfold",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
