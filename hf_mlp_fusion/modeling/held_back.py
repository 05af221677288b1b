"""What transformers says while it loads, kept until it is known whether it holds."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

__all__ = ["held_back"]


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def held_back() -> Iterator[list[logging.LogRecord]]:
    """Keeps transformers' messages, and lets them out in the end: those of them that are still in the list.

    Yields:
        The messages so far.
    """
    logger, kept = logging.getLogger("transformers"), _Kept()
    usual, logger.handlers = logger.handlers, [kept]
    try:
        yield kept.records
    finally:
        logger.handlers = usual
        for record in kept.records:
            for handler in usual:
                handler.handle(record)
