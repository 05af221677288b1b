"""The registry of model families: where the FFNs of each are, in the terms of its stock modules.

May import `errors`. A family is one small file beside this one and one line in `FAMILIES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UnsupportedModelError
from .bert import BERT, ROBERTA
from .gpt2 import GPT2
from .spec import Family, FFNSpec
from .switch import SWITCH

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["FAMILIES", "FFNSpec", "Family", "family_of"]

FAMILIES: dict[str, Family] = {family.model_type: family for family in (BERT, ROBERTA, GPT2, SWITCH)}
"""The families by stock `model_type`. `hf_mlp_fusion.register_family` adds to it."""


def family_of(config: PreTrainedConfig | type[PreTrainedConfig]) -> Family:
    """Returns the family of a stock or fused config, or config class.

    Raises:
        UnsupportedModelError: No family is registered for its `model_type`.
    """
    model_type = getattr(config, "stock_model_type", config.model_type)
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"models of type {model_type!r} are not supported; supported are {', '.join(sorted(FAMILIES))}. "
            "A new family is one FFNSpec: see hf_mlp_fusion.register_family"
        )
    return FAMILIES[model_type]
