"""Safetensors files that are written a tensor at a time, in any order: all places are known before anything is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import dot_natural_key
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ..files import write_text

__all__ = ["Shards", "saved_tensors"]

_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
"""Safetensors' names of dtypes, in the order in which it lays them out from the last to the first: wide ones first."""

_RANKS = {dtype: rank for rank, dtype in enumerate(_DTYPES)}
_ALIGNMENT = 8  # of the header, which spaces fill up


def saved_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors that `save_pretrained` writes of a fused model, in its order; of tied ones one.

    Args:
        model: The model, on the meta device.
    """
    state = model.state_dict()
    for name in model._keys_to_ignore_on_save or ():
        state.pop(name, None)
    state = remove_tied_weights_from_state_dict(state, model)
    return {name: state[name] for name in sorted(state, key=dot_natural_key)}


class Shards:
    """The weight files of a model, in a folder.

    Args:
        folder: The folder; it exists.
        tensors: What they will hold, on the meta device.
        max_shard_size: As for `save_pretrained`.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor], max_shard_size: str | int) -> None:
        self.folder, self.tensors = folder, tensors
        split = split_torch_state_dict_into_shards(
            dict(tensors), filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
        )
        self._metadata = split.metadata
        self._file_of: dict[str, str] = split.tensor_to_filename
        self.names: dict[str, list[str]] = split.filename_to_tensors
        """Names of the tensors of each file."""
        self._places: dict[str, int] = {}
        self._headers = {file: self._header(names) for file, names in self.names.items()}
        self._open: dict[str, FileIO] = {}
        self._written: set[FileIO] = set()

    def _header(self, names: Iterable[str]) -> bytes:
        """The header of a file, as safetensors writes it; notes where its tensors begin."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        ordered = sorted(names, key=lambda name: (-_RANKS[self.tensors[name].dtype], name))
        start = 0
        for name in ordered:
            tensor = self.tensors[name]
            self._places[name], stop = start, start + tensor.nbytes
            header[name] = {
                "dtype": _DTYPES[tensor.dtype],
                "shape": [*tensor.shape],
                "data_offsets": [start, stop],
            }
            start = stop
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        for name in ordered:
            self._places[name] += 8 + len(text)
        return len(text).to_bytes(8, "little") + text

    def bytes_of(self, file: str) -> int:
        """Bytes of a file."""
        return len(self._headers[file]) + sum(self.tensors[name].nbytes for name in self.names[file])

    @property
    def missing_bytes(self) -> int:
        """Bytes of disk that the files have not been given yet."""
        paths = {file: self.folder / file for file in self.names}
        given = sum(path.stat().st_blocks * 512 for path in paths.values() if path.exists())
        return max(0, sum(map(self.bytes_of, self.names)) - given)

    @property
    def are_there(self) -> bool:
        """Whether all files are there, of their whole size."""
        paths = {file: self.folder / file for file in self.names}
        return all(path.is_file() and path.stat().st_size == self.bytes_of(file) for file, path in paths.items())

    def __enter__(self) -> Shards:
        """Makes the files, or opens them as they are: of their whole size, so that the disk cannot become full."""
        for file, header in self._headers.items():
            path, size = self.folder / file, self.bytes_of(file)
            path.touch()
            handle = self._open[file] = path.open("r+b", buffering=0)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle.fileno(), 0, size)
            handle.truncate(size)
            _write(handle, memoryview(header), 0)
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._open.values():
            handle.close()
        self._open.clear()

    def write(self, name: str, pieces: Iterable[Tensor], *, number: int = 0) -> None:
        """Writes a tensor, or one of a stack of equal ones.

        Args:
            name: Its name.
            pieces: It, cut along its first dimension.
            number: Its number in the stack.
        """
        dtype, place, handle = self.tensors[name].dtype, self._places[name], self._open[self._file_of[name]]
        self._written.add(handle)
        for count, piece in enumerate(pieces):
            data = piece.detach().to("cpu", dtype).contiguous().flatten().view(torch.uint8).numpy()
            if not count:
                place += number * data.nbytes
            _write(handle, data.data, place)
            place += data.nbytes

    def sync(self) -> None:
        """Has all that was written since the last time on the disk."""
        while self._written:
            os.fsync(self._written.pop().fileno())

    def write_index(self, folder: Path, parameters: int) -> None:
        """Writes the list of what is in which file, where there are several.

        Args:
            folder: Where to.
            parameters: Parameters of the model.
        """
        if len(self.names) > 1:
            metadata = {"total_parameters": parameters, **self._metadata}
            index = {"metadata": metadata, "weight_map": self._file_of}
            write_text(folder / SAFE_WEIGHTS_INDEX_NAME, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write(file: FileIO, data: memoryview, place: int) -> None:
    file.seek(place)
    while data:
        data = data[file.write(data) :]
