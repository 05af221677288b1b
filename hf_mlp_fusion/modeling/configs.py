"""The fused config classes: `Fused<Stock>Config`, one a family."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import transformers
from transformers import PreTrainedConfig

from ..families import Family
from ..recipe import FusionSection

__all__ = ["FusedConfigMixin", "config_class", "deferred_config", "fused_type", "on_first_config"]

_LISTENERS: list[Callable[[Family], None]] = []


def on_first_config(listener: Callable[[Family], None]) -> Callable[[Family], None]:
    """Has a function called with each family when its first fused config is made.

    Args:
        listener: The function.
    """
    _LISTENERS.append(listener)
    return listener


@functools.cache
def _tell_listeners(family: Family) -> None:
    from transformers import AutoConfig  # noqa: F401 (registration follows it, see `hf_mlp_fusion`, and listens)

    for listener in _LISTENERS:
        listener(family)


class FusedConfigMixin:
    """What every fused config class adds to its stock class: the `mlp_fusion` section."""

    stock_model_type: ClassVar[str]
    family: ClassVar[Family]
    mlp_fusion: dict[str, Any] | None
    # TRL reads it of all classes that are not transformers' own. None is stored unless a stub is.
    auto_map: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]
        if self.mlp_fusion is not None:
            FusionSection.from_dict(self.mlp_fusion)
        _tell_listeners(self.family)

    def own_auto_map(self) -> None:
        """Gives this config an `auto_map` of its own, which transformers fills when it saves a user's subclass."""
        self.auto_map = dict(self.auto_map)  # type: ignore[misc]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As the stock class's, and saves the stub that a config from the Hub may name (`hf_mlp_fusion.hub`)."""
        from ..hub import has_stub, save_stub

        if self._auto_class is not None:  # type: ignore[attr-defined]
            self.own_auto_map()
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if has_stub({"auto_map": getattr(self, "auto_map", None)}):
            save_stub(save_directory)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing for the classes of this package, which transformers would else copy into each saved folder."""
        if cls.__module__ != __package__:
            super().register_for_auto_class(auto_class)  # type: ignore[misc]


class _ModelType:
    """`model_type`: a class's own is what `config.json` says, an instance's is that of its stock class.

    transformers and its neighbours read the first to find and to save a config, the second to see how a model behaves
    (Whisper's generation and its pipeline, say), and that is as the stock model does.
    """

    def __init__(self, fused: str, stock: str) -> None:
        self.fused, self.stock = fused, stock

    def __get__(self, config: PreTrainedConfig | None, owner: type | None = None) -> str:
        return self.fused if config is None else self.stock

    def __set__(self, config: PreTrainedConfig, value: str) -> None:
        """Ignores it: configs read from files come with the class's."""


class DeferredConfig(type):
    """A stand-in for a fused config class: whoever uses it gets the class itself, made only then.

    transformers wants a class for each `model_type` at registration, and each stock config class that must be imported
    to make one costs some hundredths of a second.
    """

    family: Family

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return config_class(cls.family)(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        return getattr(config_class(cls.family), name)


def deferred_config(family: Family) -> DeferredConfig:
    """A stand-in for the fused config class of a family.

    Args:
        family: The family.
    """
    members = {"__module__": __package__, "family": family, "model_type": fused_type(family)}
    return DeferredConfig(f"Fused{family.config_class}", (), members)


def fused_type(family: Family) -> str:
    """The `model_type` of a family's fused configs.

    Args:
        family: The family.
    """
    return f"fused_{family.model_type}"


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
            "__module__": __package__,  # promised: pickles name it
            "__doc__": f"`{stock.__name__}` with the section `mlp_fusion`: the recipe, the source, and each fused "
            "FFN's width. `intermediate_size` and its kin keep the original width.",
            "model_type": _ModelType(fused_type(family), family.model_type),
            "stock_model_type": family.model_type,
            "family": family,
            "mlp_fusion": None,
            "__annotations__": {"mlp_fusion": dict[str, Any] | None},
        },
    )
