"""How much memory may be used: what the machine has to spare, under all limits that a process may be set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ..errors import MemoryLimitError

if TYPE_CHECKING:
    import torch

__all__ = ["available_bytes", "check_room", "readable_bytes", "spare_bytes"]

_MOST = 2**31  # more makes nothing faster
_CGROUPS, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_bytes(device: torch.device) -> int:
    """Memory that is there for the asking.

    Args:
        device: A GPU, or anything else for the machine's own memory, which a cgroup (as of a container) and the limits
            of the process (`ulimit -v`) may make less.
    """
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, min([psutil.virtual_memory().available, *_within_cgroups(), *_within_limits()]))


def spare_bytes(device: torch.device) -> int:
    """Memory that a stage should get by with: half of what is there, and no more than speeds it up.

    Args:
        device: Where the stage runs.
    """
    return min(available_bytes(device) // 2, _MOST)


def check_room(needed: int, device: torch.device, what: str, mend: str) -> None:
    """Checks, before work starts, that there is the memory that it takes.

    Args:
        needed: Bytes.
        device: Where.
        what: What needs it.
        mend: How to need less.

    Raises:
        MemoryLimitError: There is not.
    """
    there = available_bytes(device)
    if needed > there:
        where = "the GPU" if device.type == "cuda" else "this machine"
        raise MemoryLimitError(
            f"{what} needs about {readable_bytes(needed)} of memory, and {where} has {readable_bytes(there)} to "
            f"spare: {mend}"
        )


def readable_bytes(count: float) -> str:
    """Bytes as people write them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _within_limits() -> Iterator[int]:
    """What is left of the limits of the process, where it has any."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        yield limit - psutil.Process().memory_info().vms


def _within_cgroups() -> Iterator[int]:
    """What is left of the limits of the process's cgroup and of those around it; page cache counts as free."""
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = _CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = _CGROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = root / path.lstrip("/")
        # In a container, the path is often that of the host, and the limit lies at the root.
        for folder in {root, own, *(parent for parent in own.parents if parent.is_relative_to(root))}:
            left = _left(folder, *names)
            if left is not None:
                yield left


def _left(folder: Path, limit: str, usage: str, cache: str) -> int | None:
    try:
        most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if most == "max" else int(most) - used + int(statistics.get(cache, 0))
