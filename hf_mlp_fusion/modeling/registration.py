"""Registration of the fused families with transformers' Auto classes.

`hf_mlp_fusion` has this file imported as soon as the Auto classes are. Only the (light) config classes are registered
then. A family's model classes are registered when its first fused config is made: every way to a model, from the Auto
classes to `pipeline`, reads the config first.
"""

from __future__ import annotations

import transformers
from transformers import AutoConfig

from ..errors import FusionConfigError
from ..families import FAMILIES, Family
from .configs import config_class, deferred_config, fused_type, on_first_config

__all__ = ["register_family"]


def register_family(family: Family) -> None:
    """Makes a family known to `fuse_model` and, once fused, to the Auto classes.

    Args:
        family: Where its FFNs are.

    Raises:
        FusionConfigError: transformers has no config class of that name, or another family has that model type.

    Example:
        >>> from hf_mlp_fusion.families import Family, FFNSpec
        >>> layer = FFNSpec(
        ...     host="ErnieLayer",
        ...     pattern=r"encoder\\.layer\\.(?P<layer>\\d+)",
        ...     up="intermediate.dense",
        ...     activation="intermediate.intermediate_act_fn",
        ...     down="output.dense",
        ... )
        >>> register_family(Family("ernie", "ErnieConfig", (layer,), width_field="intermediate_size"))
    """
    if FAMILIES.get(family.model_type, family) != family:
        raise FusionConfigError(f"a family with model_type {family.model_type!r} is registered already")
    if not hasattr(transformers, family.config_class):
        raise FusionConfigError(f"transformers has no config class {family.config_class!r}")
    FAMILIES[family.model_type] = family
    _register_config(family)


def _register_config(family: Family) -> None:
    """Registers a family's `model_type`; its config class is made when it is first asked for."""
    AutoConfig.register(fused_type(family), deferred_config(family), exist_ok=True)


@on_first_config
def _register_models(family: Family) -> None:
    """Registers a family's fused model classes and its processors with the Auto classes and PEFT."""
    from ..families.compat import auto_models_of
    from .adapters import add_default_targets
    from .classes import fused_class
    from .neighbours import add_class_names, add_processors

    stock_config = getattr(transformers, family.config_class)
    fused_config = config_class(family)
    AutoConfig.register(fused_config.model_type, fused_config, exist_ok=True)
    for auto_class, stock in auto_models_of(stock_config):
        auto_class.register(fused_config, fused_class(stock), exist_ok=True)
    add_class_names(family, fused_config.model_type)
    add_processors(stock_config, fused_config)
    add_default_targets(family, fused_config.model_type)


for _family in list(FAMILIES.values()):
    _register_config(_family)
