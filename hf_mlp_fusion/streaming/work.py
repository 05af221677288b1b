"""The folder of a fusion that goes on where it was stopped: shards half written, and a list of what is done."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..data import Processes
from ..errors import FusionError
from ..files import append_json, check_same_run, read_json, read_object, write_text
from ..hub import StoredTensor

__all__ = ["StreamWork", "fingerprint", "open_work", "work_place"]

_RUN, _DONE = "run.json", "done*.jsonl"


class StreamWork:
    """A folder of work. What it says is done is on the disk, and is not done again.

    Args:
        folder: The folder; it exists.
        processes: Those that do the work. Each has a list of its own of what it has done.
    """

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.folder, self.processes = folder, processes
        self._own = folder / ("done.jsonl" if processes.first else f"done.{processes.number}.jsonl")
        self.done: dict[str, Any] = {}
        """What is noted of each thing that is done."""

    def begin(self, run: Mapping[str, Any]) -> None:
        """Notes which run this is, or makes sure that what lies here is of the same, and reads what is done.

        Args:
            run: What the result depends on: plain JSON values.

        Raises:
            FusionConfigError: It is of another run.
        """
        path = self.folder / _RUN
        if self.processes.first and not path.is_file():
            write_text(path, json.dumps(run))
        self.processes.wait()
        check_same_run(self.folder, read_object(path), run, "fusion")
        self.read()

    def read(self) -> None:
        """Reads what all processes have done so far, none of which goes on before all have read."""
        self.processes.wait()
        lines = (line for path in sorted(self.folder.glob(_DONE)) for line in read_json(path))
        self.done = {line["name"]: line["value"] for line in lines}
        self.processes.wait()

    def forget(self) -> None:
        """Forgets what is done: it is to be done again."""
        if self.processes.first:
            for path in self.folder.glob(_DONE):
                path.unlink()
        self.done.clear()
        self.processes.wait()

    def note(self, name: str, value: Any = None) -> None:
        """Notes that something is done.

        Args:
            name: What.
            value: What is to be known of it afterwards.
        """
        append_json(self._own, {"name": name, "value": value})
        self.done[name] = value


def work_place(out: Path) -> Path:
    """The folder of work for a folder that is to be written: beside it.

    Args:
        out: The folder to write.
    """
    out = out.expanduser().absolute()
    return out.with_name(f"{out.name}.streaming")


@contextlib.contextmanager
def open_work(place: Path, processes: Processes) -> Iterator[StreamWork]:
    """Opens a folder of work for one run at a time, and makes it where it is not there.

    Args:
        place: The folder.
        processes: Those of the run.

    Yields:
        It. Where nothing was noted yet, it is gone after an error; where all is done, it is gone at the end.

    Raises:
        FusionConfigError: Another run is at work in it, or it holds something else.
    """
    with processes.claimed(place, (_RUN,), "fusion", "another OUT"):
        work = StreamWork(place, processes)
        try:
            yield work
        except FusionError:
            if processes.first and not work.done and not any(any(read_json(path)) for path in place.glob(_DONE)):
                _clear(place)
            raise
        processes.wait()
        if processes.first:
            _clear(place)


def _clear(place: Path) -> None:
    """Deletes a folder of work in an order that leaves nothing to be misread, wherever it is stopped."""
    for path in (*place.glob(_DONE), *place.glob("*.safetensors")):
        path.unlink()
    shutil.rmtree(place, ignore_errors=True)


def fingerprint(stored: Iterable[StoredTensor]) -> str:
    """A digest of which tensors a checkpoint has, and of the size and the age of its files.

    Args:
        stored: Its tensors.
    """
    digest = hashlib.blake2b(digest_size=16)
    files = set()
    for item in sorted(stored, key=lambda item: item.name):
        digest.update(f"{item.name} {item.shape} {item.dtype} {item.file.name}\n".encode())
        files.add(item.file)
    for file in sorted(files):
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
