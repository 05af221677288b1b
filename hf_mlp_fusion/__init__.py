"""MLP Fusion for Hugging Face models: narrower FFNs and experts, fused once before fine-tuning.

Importing this package registers the fused model types with transformers' Auto classes, as soon as those are imported.
Everything else is imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .late_imports import after_import, when_used

if TYPE_CHECKING:
    from .errors import BrokenCheckpointError, FusionConfigError, FusionError, FusionWarning, UnsupportedModelError
    from .export import export_plain, fold, unfold
    from .fusion import Statistics, calibrate_checkpoint, calibrate_model, calibrate_ntk, fuse_model
    from .modeling.modules import ClusterScaling, FusedMLP
    from .modeling.registration import register_family
    from .recipe import FusionConfig, FusionReport
    from .streaming import fuse_checkpoint
    from .training import freeze_routers, router_losses

__version__ = "0.2.0"

_LAZY = {
    "BrokenCheckpointError": "errors",
    "ClusterScaling": "modeling.modules",
    "FusedMLP": "modeling.modules",
    "FusionConfig": "recipe",
    "FusionConfigError": "errors",
    "FusionError": "errors",
    "FusionReport": "recipe",
    "FusionWarning": "errors",
    "Statistics": "fusion",
    "UnsupportedModelError": "errors",
    "calibrate_checkpoint": "fusion",
    "calibrate_model": "fusion",
    "calibrate_ntk": "fusion",
    "export_plain": "export",
    "fold": "export",
    "freeze_routers": "training",
    "fuse_checkpoint": "streaming",
    "fuse_model": "fusion",
    "register_family": "modeling.registration",
    "router_losses": "training",
    "unfold": "export",
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
    "Statistics",
    "UnsupportedModelError",
    "calibrate_checkpoint",
    "calibrate_model",
    "calibrate_ntk",
    "export_plain",
    "fold",
    "freeze_routers",
    "fuse_checkpoint",
    "fuse_model",
    "register_family",
    "router_losses",
    "unfold",
]


_late = when_used(__name__, _LAZY)


def __getattr__(name: str) -> Any:
    if name == "registration":  # the stub of version 0.1 imports it, and looks for config classes there
        return importlib.import_module(".modeling", __name__)
    return _late(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


after_import(
    "transformers.models.auto.configuration_auto",  # whoever uses an Auto class has imported it
    lambda: importlib.import_module(".modeling.registration", __name__),
)
