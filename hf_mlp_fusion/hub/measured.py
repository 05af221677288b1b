"""Figures that were measured on a model and go into its card."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ..errors import DataError

__all__ = ["Measured", "read_measured"]

_LARGEST = 16 * 2**20  # bytes


@dataclass(frozen=True)
class Measured:
    """One figure.

    Args:
        task: The Hub's name of the task (`"text-classification"`).
        dataset: The data set's Hub id or name.
        split: Its split.
        metric: Name of the metric (`"accuracy"`).
        value: The figure; the mean, where there were several seeds.
        spread: Standard deviation over the seeds.
        seeds: Number of seeds.
        command: The command that measured it.
    """

    task: str
    dataset: str
    split: str
    metric: str
    value: float
    spread: float | None = None
    seeds: int | None = None
    command: str = ""

    def to_eval_result(self) -> EvalResult:
        """The figure as an entry of a card's model-index."""
        return EvalResult(
            task_type=self.task,
            dataset_type=self.dataset,
            dataset_name=self.dataset,
            dataset_split=self.split,
            metric_type=self.metric,
            metric_value=self.value,
        )

    @classmethod
    def from_dict(cls, values: object) -> Measured:
        """Reads one figure; fields that it does not know are left out.

        Raises:
            DataError: A field is missing or has a wrong type.
        """
        if not isinstance(values, Mapping):
            raise DataError(f"a figure is an object with {', '.join(f.name for f in fields(cls))}")
        found: dict[str, Any] = {}
        for field in fields(cls):
            value = values.get(field.name)
            if value is None:
                if field.default is MISSING:
                    raise DataError(f"{field.name!r} is missing")
                continue
            wanted: tuple[type, ...] = {"str": (str,), "int": (int,)}.get(str(field.type).split(" ")[0], (int, float))
            if isinstance(value, bool) or not isinstance(value, wanted):
                raise DataError(f"{field.name} must be {field.type}, not {value!r:.60}")
            if isinstance(value, float) and not math.isfinite(value):
                raise DataError(f"{field.name} is {value}")
            found[field.name] = value
        return cls(**found)


def read_measured(path: str | Path) -> list[Measured]:
    """Reads figures from a file of JSON lines.

    Args:
        path: The file: an object a line, with the fields of `Measured` and perhaps others.

    Raises:
        DataError: A line is no such object.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size > _LARGEST:
        raise DataError(f"{path} is too large: a figure takes about 200 bytes")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    measured = []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                measured.append(Measured.from_dict(json.loads(line)))
        except (ValueError, RecursionError) as error:  # no JSON, or no figure
            raise DataError(f"{path}, line {number}: {error}") from error
    return measured
