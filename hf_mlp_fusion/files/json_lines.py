"""Files of JSON lines, which a run appends to as it goes and reads to go on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["append_json", "read_json"]


def append_json(path: Path, values: Mapping[str, Any]) -> None:
    """Appends an object; it is on the disk when this returns.

    Args:
        path: The file; it and its folder are made where they are not there.
        values: The object.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A line that a crash cut short is left alone: the new one starts a line of its own.
    broken = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * broken + json.dumps(values) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> Iterator[Any]:
    """Yields the values of a file's lines in their order; a line that was cut short is passed over.

    Args:
        path: The file; none there is none in it.
    """
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
