"""What layers returned, kept on disk between one layer and the next; and how far a calibration has come."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..data import Batch
from ..files import read_object, whole_file, write_text

__all__ = ["STATE", "LayerFiles"]

STATE = "state.json"
"""The file that says how many layers are done."""

Piece = tuple[str, Batch]
"""A batch, and what it is called."""


class LayerFiles:
    """A folder of what layers returned.

    Args:
        folder: The folder. It is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = folder / STATE
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def layer(self) -> int:
        """Layers that are done, and the head behind them, and then layers once more, backwards."""
        return int(read_object(self._state)["layer"]) if self._state.is_file() else 0

    def clear(self) -> None:
        """Removes what another calibration has left; weights, which are read from here, and the lock stay."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.name.startswith("weights"):
                shutil.rmtree(path)
            elif path.suffix in (".json", ".safetensors"):
                path.unlink()

    def step(self, layer: int) -> None:
        """Writes down that one more is done."""
        write_text(self._state, json.dumps({"layer": layer}))

    def pieces(self, kind: str, made: Sequence[Piece]) -> list[Piece]:
        """Batches as they were cut when the calibration began: another memory would cut them otherwise.

        Args:
            kind: What they are for.
            made: As they would be cut now.
        """
        path = self.folder / f"{kind}.safetensors"
        names = path.with_suffix(".json")  # written last: with it, both are whole
        if not names.is_file():
            self._save(path, {f"{n}.{key}": item for n, (_, piece) in enumerate(made) for key, item in piece.items()})
            write_text(names, json.dumps({"names": [name for name, _ in made]}))
        called = read_object(names)["names"]
        found: list[Batch] = [{} for _ in called]
        for key, tensor in load_file(path).items():
            number, _, name = key.partition(".")
            found[int(number)][name] = tensor
        return list(zip(called, found, strict=True))

    def write(self, kind: str, layer: int, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Keeps what a layer returned on a piece.

        Args:
            kind: What the piece is for.
            layer: The layer.
            number: Number of the piece.
            tensors: What it returned.
        """
        path = self._path(kind, layer, number)
        path.parent.mkdir(exist_ok=True)
        self._save(path, tensors)

    def read(self, kind: str, layer: int, number: int, device: torch.device) -> dict[str, Tensor]:
        """What a layer returned on a piece; nothing before the first.

        Args:
            kind: What the piece is for.
            layer: The layer.
            number: Number of the piece.
            device: Where to.
        """
        return load_file(self._path(kind, layer, number), device=str(device)) if layer >= 0 else {}

    def forget(self, kind: str, layer: int) -> None:
        """Removes what a layer returned."""
        shutil.rmtree(self.folder / f"{kind}.{layer}", ignore_errors=True)

    def _path(self, kind: str, layer: int, number: int) -> Path:
        return self.folder / f"{kind}.{layer}" / f"{number}.safetensors"

    def _save(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        # Clones: what several tensors share is written for each of them.
        with whole_file(path) as temporary:
            save_file({name: item.detach().cpu().contiguous().clone() for name, item in tensors.items()}, temporary)
