"""Progress in a file or a pipe: a line now and then, no bar that a terminal alone can redraw."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..late_imports import after_import

__all__ = ["lines_where_piped"]

_SECONDS = 10.0  # between two lines: what takes less shows none
_LINE = "{l_bar} {elapsed}<{remaining}"


class _Lines:
    """A stream that makes lines of what a bar writes: no carriage returns, no moves of the cursor."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def write(self, text: str) -> None:
        """Writes what is to be read of a text, if the last line was some time ago."""
        line = re.sub(r"[\r\n]|\x1b\[[0-9;]*[A-Za-z]", "", text).strip()
        if line and time.monotonic() - self.last >= _SECONDS:
            self.last = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Has nothing to do."""


@contextlib.contextmanager
def lines_where_piped() -> Iterator[None]:
    """Makes lines of progress bars while it is open, where stderr is no terminal."""
    with contextlib.ExitStack() as stack:
        if not sys.stderr.isatty():
            after_import("transformers.utils.logging", lambda: stack.callback(_show_lines()))
        yield


def _show_lines() -> Callable[[], object]:
    """Makes lines of the bars of transformers, and of those here, which are its; returns what undoes it."""
    from transformers.utils import logging as transformers_logging

    def as_lines(factory: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        return factory(*args, **kwargs | {"file": _Lines(), "bar_format": _LINE})

    before = transformers_logging.set_tqdm_hook(as_lines)
    return lambda: transformers_logging.set_tqdm_hook(before)
