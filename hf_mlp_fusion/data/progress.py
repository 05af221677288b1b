"""One progress bar over work of many stages, and a word before a stage that will take minutes."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from transformers.utils import logging as transformers_logging

__all__ = ["Progress", "progress_over"]

logger = logging.getLogger(__name__)

_LONG = 180.0  # seconds of a stage that are worth a word
_TICKS = 1000  # of the bar over all stages: whole numbers, whose sum is exact
_SURE = 3.0  # seconds after which its pace is known


@dataclass
class _Whole:
    """The bar over all stages, and how much of its work is done."""

    bar: Any
    title: str
    work: float
    done: float = 0.0
    ticks: int = 0
    stage: str = ""

    def advance(self, work: float, stage: str) -> None:
        """Moves the bar, never beyond its end."""
        if stage != self.stage:
            self.stage = stage
            self.bar.set_description(f"{self.title} ({stage})" if stage else self.title)
        self.done = min(self.work, self.done + work)
        ticks = int(_TICKS * self.done / self.work) if self.work else _TICKS
        self.bar.update(ticks - self.ticks)
        self.ticks = ticks


_whole: ContextVar[_Whole | None] = ContextVar("whole", default=None)


@contextlib.contextmanager
def progress_over(work: float, title: str, *, leave: bool = True) -> Iterator[None]:
    """Shows one bar, with the time left, for all stages that report their progress while it is open.

    Args:
        work: Work of all stages, in any unit that makes them comparable.
        title: What is done.
        leave: Whether the bar stays when all is done.
    """
    layout = "{l_bar}{bar}| {elapsed}<{remaining}"
    with transformers_logging.tqdm(total=_TICKS, desc=title, bar_format=layout, smoothing=0.05, leave=leave) as bar:
        whole = _Whole(bar, title, work)
        token = _whole.set(whole)
        try:
            yield
            whole.advance(work, "")  # what the estimate had too much
        finally:
            _whole.reset(token)


class Progress:
    """The progress of one stage: a bar of its own, or its part of the bar over all stages.

    Args:
        steps: Steps of the stage.
        stage: What it does, as "moments".
        work: The work of all its steps, in the unit of the bar over all stages.
        shorter: What makes it shorter, for the word that is said where it takes minutes.
    """

    def __init__(self, steps: int, stage: str, *, work: float = 0.0, shorter: str = "") -> None:
        self.steps, self.stage, self.shorter = max(1, steps), stage, shorter
        self._done, self._said, self._started = 0, not shorter, time.perf_counter()
        self._each = work / self.steps
        self._whole = _whole.get()
        if self._whole is None:
            self._bar = transformers_logging.tqdm(total=steps, desc=stage, leave=False)
        else:
            self._whole.advance(0.0, stage)

    def update(self, steps: int = 1) -> None:
        """Says that steps are done."""
        self._done += steps
        if self._whole is None:
            self._bar.update(steps)
        else:
            self._whole.advance(steps * self._each, self.stage)
        taken = time.perf_counter() - self._started
        if not self._said and taken >= _SURE:
            self._said = True
            if (total := taken * self.steps / self._done) >= _LONG:
                logger.warning("%s: about %.0f minutes; %s", self.stage, total / 60, self.shorter)

    def close(self) -> None:
        """Takes its own bar away."""
        if self._whole is None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
