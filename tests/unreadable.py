"""Files without permission, also for root, who may read everything."""

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
    mode = path.stat().st_mode
    if os.geteuid() != 0:
        path.chmod(0)
        try:
            yield
        finally:
            path.chmod(mode)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(_VERSION, 0), (ctypes.c_uint32 * 6)()
    path.chmod(0)
    assert libc.capget(header, data) == 0
    effective = data[0]
    data[0] = effective & ~_READ_ANYTHING
    assert libc.capset(header, data) == 0
    try:
        assert not os.access(path, os.R_OK, effective_ids=True)
        yield
    finally:
        data[0] = effective
        assert libc.capset(header, data) == 0
        path.chmod(mode)
