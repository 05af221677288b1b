"""The stub: a few lines of remote code in a repository, by which transformers finds this package without an import.

`config.json` names it in `auto_map`, and whoever saves such a config saves the stub beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ..files import read_object, write_text
from .saved import saved_architecture, saved_family

__all__ = [
    "STUB_NAME",
    "add_stub",
    "auto_classes",
    "config_text",
    "has_stub",
    "save_stub",
    "stub_text",
    "with_stub",
    "without_stub",
]

STUB_NAME = "modeling_mlp_fusion.py"
_MODULE = STUB_NAME.removesuffix(".py")


def stub_text() -> str:
    """The stub's code, the same for every model."""
    return resources.files(__package__).joinpath(STUB_NAME).read_text(encoding="utf-8")


def save_stub(folder: str | Path) -> None:
    """Writes the stub into a folder, whole or not at all."""
    write_text(Path(folder) / STUB_NAME, stub_text())


def add_stub(folder: str | Path) -> None:
    """Gives a saved fused model the stub: the file, and the `auto_map` in its `config.json`."""
    path = Path(folder) / "config.json"
    write_text(path, config_text(with_stub(read_object(path))))
    save_stub(folder)


def config_text(config: Mapping[str, Any]) -> str:
    """The text of a `config.json`, as transformers writes it."""
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def has_stub(config: Mapping[str, Any]) -> bool:
    """Whether a config needs the stub beside it.

    Args:
        config: The values of a `config.json`.
    """
    return any(_is_stub(reference) for reference in _auto_map(config).values())


def with_stub(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that leads to the stub.

    `AutoConfig` alone would do: the stub imports this package, which registers all heads. The Hub and the readers of
    `config.json` are told the classes of the body and of the saved head besides.

    Args:
        config: The values of a fused model's `config.json`.

    Raises:
        BrokenCheckpointError: Its `model_type` is unknown.
    """
    auto_map = {"AutoConfig": f"{_MODULE}.Fused{saved_family(config).config_class}"}
    for auto_class, name in auto_classes(config).items():
        if auto_class == "AutoModel" or name == saved_architecture(config):
            auto_map[auto_class] = f"{_MODULE}.{name}"
    bare = without_stub(config)
    return bare | {"auto_map": _auto_map(bare) | auto_map}


def auto_classes(config: Mapping[str, Any]) -> dict[str, str]:
    """The Auto classes of a fused model's family, each with the name of the fused class that it loads.

    Args:
        config: The values of a fused model's `config.json`.

    Raises:
        BrokenCheckpointError: Its `model_type` is unknown.
    """
    import transformers  # the rest of this file needs none of it

    from ..families.compat import auto_models_of

    stock_config = getattr(transformers, saved_family(config).config_class)
    return {auto.__name__: f"Fused{stock.__name__}" for auto, stock in auto_models_of(stock_config)}


def without_stub(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that does not lead to the stub."""
    rest = {name: reference for name, reference in _auto_map(config).items() if not _is_stub(reference)}
    bare = {name: value for name, value in config.items() if name != "auto_map"}
    return bare | {"auto_map": rest} if rest else bare


def _auto_map(config: Mapping[str, Any]) -> dict[str, Any]:
    auto_map = config.get("auto_map")
    return dict(auto_map) if isinstance(auto_map, Mapping) else {}


def _is_stub(reference: object) -> bool:
    return isinstance(reference, str) and reference.startswith(f"{_MODULE}.")
