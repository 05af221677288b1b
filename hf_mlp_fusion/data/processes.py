"""Work shared by the processes of `accelerate launch`: each does a part, and what comes of it is put together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import Tensor

from ..errors import FusionConfigError
from ..files import claimed

__all__ = ["Processes"]

Item = TypeVar("Item")


class Processes:
    """The processes of a launch; one, where there was none.

    Args:
        device: Where the work is done: `"cuda"` is the GPU of the process.
    """

    def __init__(self, device: str = "cpu") -> None:
        # Not asked for where nothing was launched: accelerate's state would keep its device for all that comes after.
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._state = PartialState(cpu=device == "cpu") if launched else None
        self.device = torch.device(device)
        if self._state is not None and device == "cuda":
            self.device = torch.device("cuda", self._state.local_process_index)

    @property
    def count(self) -> int:
        """How many there are."""
        return 1 if self._state is None else int(self._state.num_processes)

    @property
    def number(self) -> int:
        """Which of them this is."""
        return 0 if self._state is None else int(self._state.process_index)

    @property
    def first(self) -> bool:
        """Whether this is the first, which writes what all have done."""
        return self.number == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """The part of some items that is this process's: neighbours, those of the first process first."""
        if self._state is None:
            return list(items)
        with self._state.split_between_processes(list(items)) as mine:
            return list(mine)

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums of tensors over all processes.

        Args:
            tensors: Of the same shapes in each.
        """
        return list(tensors) if self._state is None else list(reduce(list(tensors), "sum"))

    def joined(self, items: Sequence[Item]) -> list[Item]:
        """The items of all processes, in their order."""
        return list(items) if self._state is None else list(gather_object(list(items)))

    def of_first(self, item: Any) -> Any:
        """What the first process has."""
        return item if self._state is None else broadcast_object_list([item])[0]

    @contextlib.contextmanager
    def claimed(self, place: Path, known: Collection[str], what: str, another: str) -> Iterator[None]:
        """Holds a folder of work, which all see, for this run, as `hf_mlp_fusion.files.claimed` does for a process.

        Args:
            place: The folder.
            known: As there.
            what: As there.
            another: As there.

        Raises:
            FusionConfigError: As there, in all processes.
        """
        with contextlib.ExitStack() as held:
            refused = None
            if self.first:
                try:
                    held.enter_context(claimed(place, known, what, another))
                except FusionConfigError as error:
                    refused = str(error)
            refused = self.of_first(refused)  # all end, or those that are left wait for the first
            if refused is not None:
                raise FusionConfigError(refused)
            yield

    def wait(self) -> None:
        """Waits for all."""
        if self._state is not None:
            self._state.wait_for_everyone()
