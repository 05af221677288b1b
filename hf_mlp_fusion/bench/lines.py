"""The lines of a bench: one JSON object a run, written as soon as it is finished, read to go on or to tabulate."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import append_json, read_json

__all__ = ["Line", "append_line", "key_of", "read_lines"]


@dataclass(frozen=True)
class Line:
    """One run.

    Args:
        key: What identifies the run: a digest of everything that decides its outcome.
        bench: `"glue"` or `"webnlg"`.
        model: The original model, by the last part of its name.
        task: The task.
        method: `"unfused"`, a key of `METHODS`, or `"rival:NAME"`.
        seed: Seed of head, order and dropout.
        rate: Learning rate at its peak.
        settings: How it was trained: `Settings`, the recipe of the fusion, the numbers of rows.
        fold: Metrics on the rows held out of the training data, after each epoch.
        reported: Metrics on the rows that are reported on, after each epoch; only the last one where text is written.
        parameters: Parameters of the model that was fine-tuned, its head included.
        reduce_seconds: Seconds that making it smaller took.
        seconds: Seconds that fine-tuning and scoring took.
        refused: Why the method could not be run; no metrics then.
        command: The command.
        device: The device.
        versions: Versions of the libraries.
    """

    key: str
    bench: str
    model: str
    task: str
    method: str
    seed: int
    rate: float
    settings: dict[str, Any]
    fold: list[dict[str, float]] = field(default_factory=list)
    reported: list[dict[str, float]] = field(default_factory=list)
    parameters: int = 0
    reduce_seconds: float = 0.0
    seconds: float = 0.0
    refused: str | None = None
    command: str = ""
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def key_of(*parts: object) -> str:
    """A digest of JSON values."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def append_line(path: Path, line: Line) -> None:
    """Appends a line to a file; it is on the disk when this returns."""
    append_json(path, asdict(line))


def read_lines(path: Path) -> list[Line]:
    """Reads the lines of a file; of several with one key, the last.

    Raises:
        DataError: It holds something else.
    """
    lines: dict[str, Line] = {}
    for values in read_json(path):
        try:
            line = Line(**values)
        except TypeError as error:
            raise DataError(f"{path} holds what is no line of a bench; name another file ({error})") from error
        lines[line.key] = line
    return list(lines.values())
