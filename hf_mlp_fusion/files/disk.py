"""How much room a disk has for what is to be written."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import DiskLimitError
from .budget import readable_bytes

__all__ = ["check_disk"]


def check_disk(needed: int, place: Path, what: str) -> None:
    """Checks, before work starts, that there is the disk space that it takes.

    Args:
        needed: Bytes that will be written.
        place: The file or folder that they are written to; it need not be there.
        what: What needs them.

    Raises:
        DiskLimitError: There is not.
    """
    folder = place.expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskLimitError(
            f"{what} needs {readable_bytes(needed)} of disk, and {folder} has {readable_bytes(free)} free: free some, "
            "or name another place"
        )
