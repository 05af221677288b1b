"""Reading JSON files that others wrote: small ones, objects, and with errors that say what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import BrokenCheckpointError

__all__ = ["read_object"]

# Bytes. Receipts take about 300 an FFN, configs 100 and indices 100 a tensor: room for a mixture of 30,000 experts.
_LARGEST = 16 * 2**20


def read_object(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Args:
        path: The file.

    Raises:
        BrokenCheckpointError: It is too large, not JSON, or no object.
    """
    path = Path(path)
    if path.stat().st_size > _LARGEST:
        raise BrokenCheckpointError(f"{path} is too large: {path.name} has a few megabytes at most")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, numbers of more than 4300 digits
        raise BrokenCheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise BrokenCheckpointError(f"{path} must hold a JSON object, not {type(values).__name__}")
    return values
