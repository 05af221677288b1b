"""The registry of model families: where the FFNs of each are, in the terms of its stock modules.

May import `errors`. A family is an entry of a file in `catalogue`, which is found by itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from ..errors import UnsupportedModelError
from . import catalogue
from .spec import Family, FFNSpec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["FAMILIES", "FFNSpec", "Family", "family_of"]

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for file in pkgutil.iter_modules(catalogue.__path__)
    for family in importlib.import_module(f"{catalogue.__name__}.{file.name}").FAMILIES
}
"""The families by stock `model_type`. `hf_mlp_fusion.register_family` adds to it."""


def family_of(config: PreTrainedConfig | type[PreTrainedConfig] | None) -> Family:
    """Returns the family of a stock or fused config, or config class.

    Raises:
        UnsupportedModelError: No family is registered for its `model_type`.
    """
    model_type = getattr(config, "stock_model_type", getattr(config, "model_type", None))
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"models of type {model_type!r} are not supported; `hf-mlp-fusion families` lists those that are. "
            "A new family is one FFNSpec: see hf_mlp_fusion.register_family"
        )
    return FAMILIES[model_type]
