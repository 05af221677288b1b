"""Files and folders without permission, also for root, who may read and write everything."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_VERSION, _READ_ANYTHING = 0x20080522, 0b110  # linux/capability.h: version 3; CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@contextlib.contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Takes a file's permissions away, and this thread's power to read it nevertheless."""
    with _without(path, 0):
        assert not os.access(path, os.R_OK, effective_ids=True)
        yield


@contextlib.contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """Lets nothing be written into a folder, also by root's power to do so nevertheless."""
    with _without(path, 0o500):
        assert not os.access(path, os.W_OK, effective_ids=True)
        yield


@contextlib.contextmanager
def _without(path: Path, mode: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(mode)
    if os.geteuid() != 0:
        try:
            yield
        finally:
            path.chmod(before)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(_VERSION, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    effective = data[0]
    data[0] = effective & ~_READ_ANYTHING
    assert libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0] = effective
        assert libc.capset(header, data) == 0
        path.chmod(before)
