"""Fused models: their modules and classes, built, saved and loaded.

May import `hub`, `recipe`, `families`, `files`, `tensors`. The classes are attributes of this package, made when first
asked for (`hf_mlp_fusion.modeling.FusedRobertaForMaskedLM`); adapters, pickles and the stub name them so. All else is
imported from its own file: `import hf_mlp_fusion` passes through here, and must not load model code.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("Fused"):
        from ..families import FAMILIES
        from .configs import config_class

        for family in FAMILIES.values():
            if name == f"Fused{family.config_class}":
                return config_class(family)
        from .classes import find_class

        if (found := find_class(name)) is not None:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
