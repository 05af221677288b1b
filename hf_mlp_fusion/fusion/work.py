"""The folder beside statistics that a calibration works in: for one run at a time, gone when all is done."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..data import Processes
from ..files import claimed
from .layer_files import STATE

__all__ = ["open_work"]

_KNOWN = (STATE, "rows.json", "weights.0")  # one of which there is, wherever a run is stopped


@contextlib.contextmanager
def open_work(folder: Path, processes: Processes | None = None) -> Iterator[Path]:
    """Opens the folder of work of a calibration, and makes it where it is not there.

    Args:
        folder: The folder of statistics. Work lies beside it, in `FOLDER.calibrating`.
        processes: Those of the run, where it may have several: the first holds the folder for all.

    Yields:
        The folder. It is gone when all is done, and after an error before the first layer was.

    Raises:
        FusionConfigError: Another run is at work on these statistics, or the folder holds something else.
    """
    folder = folder.expanduser().absolute()
    place = folder.with_name(f"{folder.name}.calibrating")
    first = processes is None or processes.first
    claim = claimed if processes is None else processes.claimed
    with claim(place, _KNOWN, "calibration", "another STATS"):
        try:
            yield place
        except BaseException:
            if first and not (place / STATE).is_file():
                shutil.rmtree(place, ignore_errors=True)
            raise
        if processes is not None:
            processes.wait()
        if first:
            shutil.rmtree(place, ignore_errors=True)
