"""Data sets of the Hub, told from mistyped files before anything is looked up on the network."""

from __future__ import annotations

import os
import re
from typing import Any

from ..errors import DataError
from ..files import is_repo_id

__all__ = ["load_hub_dataset"]

_FILE = re.compile(r"\.(txt|text|md|csv|tsv|json|jsonl|parquet|arrow|gz|zip|zst|xz|html?|pdf)$", re.IGNORECASE)


def load_hub_dataset(source: str, config: str | None = None, split: str | None = None) -> Any:
    """Loads a data set from the Hub or its cache.

    Args:
        source: Its name with its owner, `"nyu-mll/glue"`, and its configuration behind a colon if it has several.
        config: The configuration, if it is not in the name.
        split: The split; all of them, by name, if not given.

    Raises:
        DataError: It can be no name of a data set, or cannot be loaded.
    """
    name, _, behind = source.partition(":")
    if os.path.exists(source) or "/" not in name or _FILE.search(name) or not is_repo_id(name):
        fault = "is no file that could be read" if os.path.exists(source) else "is not there"
        raise DataError(
            f"{source!r:.200} {fault}, and no name of a data set either: those have an owner, as in nyu-mll/glue:sst2"
        )
    from datasets import load_dataset

    try:
        return load_dataset(name, config or behind or None, split=split)
    except Exception as error:  # `datasets` raises a dozen kinds
        raise DataError(
            f"{source} is no file, and no data set that could be loaded: {str(error).strip().splitlines()[0]:.200}"
        ) from error
