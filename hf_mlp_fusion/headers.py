"""What the headers of a checkpoint's safetensors files say, which is lost once tensors are cast into a model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open

__all__ = ["stored_dtypes"]


def stored_dtypes(name_or_path: str | Path, names: Iterable[str], hub_kwargs: dict[str, Any]) -> dict[str, str]:
    """Reads the dtypes in which tensors are stored.

    Args:
        name_or_path: The folder or Hub id that a model was just loaded from.
        names: Names of tensors.
        hub_kwargs: `revision`, `subfolder`, `variant` and their like, as `from_pretrained` takes them.

    Returns:
        Safetensors' name of the dtype (`"I32"`, `"F32"`) of each tensor that is found.
    """
    from transformers.utils.hub import cached_file

    def find(filename: str) -> Path | None:
        path = cached_file(name_or_path, filename, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
        return None if path is None else Path(path)

    hub_kwargs = dict(hub_kwargs)
    variant = hub_kwargs.pop("variant", None)
    stem = "model.safetensors" if variant is None else f"model.{variant}.safetensors"
    wanted = set(names)
    by_file: dict[Path, set[str]] = {}
    if (single := find(stem)) is not None:
        by_file[single] = wanted
    elif (index := find(stem.replace("safetensors", "safetensors.index.json"))) is not None:
        for name, filename in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
            if name in wanted and (shard := find(filename)) is not None:
                by_file.setdefault(shard, set()).add(name)
    dtypes: dict[str, str] = {}
    for path, expected in by_file.items():
        with safe_open(path, framework="pt") as file:
            dtypes |= {name: file.get_slice(name).get_dtype() for name in expected & set(file.keys())}
    return dtypes
