"""The results of a comparison in their folder: a JSON line a row, and the kernels beside it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from ..files import append_json, read_json
from .row import Row

if TYPE_CHECKING:  # reading results needs no torch, and rows alone no numpy
    import numpy as np

    from ..measure import NTK

__all__ = ["RESULTS_NAME", "add_row", "has_kernel", "read_kernel", "read_rows", "write_kernel"]

RESULTS_NAME = "results.jsonl"


def add_row(folder: Path, row: Row) -> None:
    """Appends a finished row; it is on the disk when this returns.

    Args:
        folder: The folder of the comparison.
        row: The row.
    """
    append_json(folder / RESULTS_NAME, row.to_dict())


def read_rows(folder: Path) -> list[Row]:
    """Reads the rows of a folder, of equal keys the last; a line that was cut short is passed over.

    Args:
        folder: The folder of a comparison.

    Returns:
        The rows in the order in which they were finished; none if there is no such folder.

    Raises:
        DataError: The file holds something else.
    """
    path = folder / RESULTS_NAME
    rows: dict[str, Row] = {}
    for values in read_json(path):
        try:
            row = Row.from_dict(values)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        rows[row.key] = row
    return list(rows.values())


def write_kernel(folder: Path, key: str, kernel: NTK) -> None:
    """Writes a kernel, whole or not at all."""
    import numpy as np
    from safetensors.numpy import save_file

    path = _kernel_path(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{key}.")
    os.close(handle)
    try:
        save_file({name: np.ascontiguousarray(block.cpu()) for name, block in kernel.blocks.items()}, temporary)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def has_kernel(folder: Path, key: str) -> bool:
    """Whether a kernel lies there; it may not be whole."""
    return _kernel_path(folder, key).is_file()


def read_kernel(folder: Path, key: str) -> dict[str, np.ndarray] | None:
    """Reads the blocks of a kernel back; None where there is none, or none that is whole."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(_kernel_path(folder, key))
    except (OSError, SafetensorError):
        return None


def _kernel_path(folder: Path, key: str) -> Path:
    return folder / "kernels" / f"{key}.safetensors"
