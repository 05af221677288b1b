"""Folders of work that goes on where it was stopped: for one run at a time, and for the one alone that began."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import FusionConfigError

__all__ = ["check_same_run", "claimed"]

_LOCK = ".lock"


@contextlib.contextmanager
def claimed(place: Path, known: Collection[str], what: str, another: str) -> Iterator[None]:
    """Holds a folder of work for as long as one run is at work in it, and makes it where it is not there.

    Args:
        place: The folder. It will be deleted, so what else lies there is refused.
        known: Names of files of which a folder of such work has one.
        what: What is done there, `"tuning"` say, for the messages.
        another: What to name otherwise, `"another OUT"` say.

    Raises:
        FusionConfigError: Another run is at work in it, or it holds something else.
    """
    place.mkdir(parents=True, exist_ok=True)
    found = {path.name for path in place.iterdir()}
    if found and found.isdisjoint((*known, _LOCK)):
        raise FusionConfigError(f"{place} is not empty, and holds no {what}: name {another}, or move what is in it")
    lock = FileLock(place / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise FusionConfigError(f"another run is at work in {place}: wait for it, or name {another}") from error
    try:
        yield
    finally:
        lock.release()


def check_same_run(place: Path, begun: Mapping[str, Any], run: Mapping[str, Any], what: str) -> None:
    """Checks that the run that began in a folder of work is the one that is to go on.

    Args:
        place: The folder.
        begun: What that run's result depended on, read from JSON.
        run: What this one's depends on: plain JSON values.
        what: As for `claimed`.

    Raises:
        FusionConfigError: It is another.
    """
    others = [name for name, value in json.loads(json.dumps(dict(run))).items() if begun.get(name) != value]
    if others:
        raise FusionConfigError(
            f"{place} holds a {what} that was stopped and had other {', '.join(others)}: repeat that one, or delete "
            "the folder"
        )
