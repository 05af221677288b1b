"""Registration of the fused families with transformers' Auto classes.

Only the (light) config classes are registered at import. A family's model classes are registered when its first fused
config is made: every way to a model, from the Auto classes to `pipeline`, reads the config first.
"""

from __future__ import annotations

import functools
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig

from .errors import FusionConfigError
from .families import FAMILIES, Family
from .section import FusionSection

__all__ = ["FusedConfigMixin", "config_class", "register_family"]


class FusedConfigMixin:
    """What every fused config class adds to its stock class: the `mlp_fusion` section."""

    stock_model_type: str
    mlp_fusion: dict[str, Any] | None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]
        if self.mlp_fusion is not None:
            FusionSection.from_dict(self.mlp_fusion)
        _register_models(self.stock_model_type)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As the stock class's, and saves the stub that a config from the Hub may name (`hf_mlp_fusion.hub`)."""
        from .hub.stub import has_stub, save_stub

        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if has_stub({"auto_map": getattr(self, "auto_map", None)}):
            save_stub(save_directory)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing for the classes of this package, which transformers would else copy into each saved folder."""
        if cls.__module__ != __name__:
            super().register_for_auto_class(auto_class)  # type: ignore[misc]


@functools.cache
def config_class(family: Family) -> type[PreTrainedConfig]:
    """Returns the fused config class of a family, always the same one.

    Args:
        family: The family.
    """
    stock = getattr(transformers, family.config_class)
    return type(
        f"Fused{stock.__name__}",
        (FusedConfigMixin, stock),
        {
            "__module__": __name__,
            "__doc__": f"`{stock.__name__}` with the section `mlp_fusion`: the recipe, the source, and each fused "
            "FFN's width. `intermediate_size` and its kin keep the original width.",
            "model_type": f"fused_{family.model_type}",
            "stock_model_type": family.model_type,
            "mlp_fusion": None,
            "__annotations__": {"mlp_fusion": dict[str, Any] | None},
        },
    )


def register_family(family: Family) -> None:
    """Makes a family known to `fuse_model` and, once fused, to the Auto classes.

    Args:
        family: Where its FFNs are.

    Raises:
        FusionConfigError: transformers has no config class of that name, or another family has that model type.

    Example:
        >>> from hf_mlp_fusion.families import Family, FFNSpec
        >>> layer = FFNSpec(
        ...     host="ElectraLayer",
        ...     pattern=r"encoder\\.layer\\.(?P<layer>\\d+)",
        ...     up="intermediate.dense",
        ...     activation="intermediate.intermediate_act_fn",
        ...     down="output.dense",
        ... )
        >>> register_family(Family("electra", "ElectraConfig", (layer,), width_field="intermediate_size"))
    """
    if FAMILIES.get(family.model_type, family) != family:
        raise FusionConfigError(f"a family with model_type {family.model_type!r} is registered already")
    if not hasattr(transformers, family.config_class):
        raise FusionConfigError(f"transformers has no config class {family.config_class!r}")
    FAMILIES[family.model_type] = family
    config = config_class(family)
    globals()[config.__name__] = config
    AutoConfig.register(config.model_type, config, exist_ok=True)


@functools.cache
def _register_models(model_type: str) -> None:
    """Registers a family's fused model classes and its tokenizer with the Auto classes and PEFT, once."""
    from transformers import AutoTokenizer
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

    from .adapters import add_default_targets
    from .compat import auto_models_of
    from .modeling import fused_class

    family = FAMILIES[model_type]
    stock_config = getattr(transformers, family.config_class)
    fused_config = config_class(family)
    for auto_class, stock in auto_models_of(stock_config):
        auto_class.register(fused_config, fused_class(stock), exist_ok=True)
    tokenizer = TOKENIZER_MAPPING.get(stock_config, None)
    if tokenizer is not None:
        AutoTokenizer.register(fused_config, tokenizer, exist_ok=True)
    add_default_targets(family, fused_config.model_type)


for _family in list(FAMILIES.values()):
    register_family(_family)
