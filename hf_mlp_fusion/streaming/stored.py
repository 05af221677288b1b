"""The tensors of a model where they lie in its checkpoint, under the names that the model has for them.

transformers renames and converts what it loads (a tensor an expert becomes one parameter for all). Here the same is
done for a few tensors at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from ..errors import BrokenCheckpointError, UnsupportedModelError
from ..hub import StoredTensor

__all__ = ["CHUNK_BYTES", "StoredModel"]

CHUNK_BYTES = 2**24
"""Bytes of a tensor that are in memory at once while it is copied: pages of a mapped file count as memory."""


@dataclass
class _Group:
    """Tensors of a checkpoint that become tensors of the model together.

    Args:
        name: Name in the model of the first of them, by which transformers knows the group.
        converter: What makes them of the others; None where it is the same tensor.
        parts: The tensors of the checkpoint, each with the pattern that the converter knows it by.
        targets: Names in the model.
    """

    name: str
    converter: WeightConverter | None
    parts: list[tuple[StoredTensor, str]] = field(default_factory=list)
    targets: tuple[str, ...] = ()


class StoredModel:
    """The weights of a checkpoint, read when they are asked for.

    Args:
        model: The model, loaded on the meta device: its names, shapes and dtypes are what is read.
        stored: The tensors of its checkpoint.

    Raises:
        UnsupportedModelError: transformers converts the checkpoint in a way that needs all of it.
    """

    def __init__(self, model: PreTrainedModel, stored: Mapping[str, StoredTensor]) -> None:
        self.model = model
        self.wanted = model.state_dict()
        self._groups: dict[str, _Group] = {}
        transforms: Any = model._weight_conversions or []
        renamings = [item for item in transforms if isinstance(item, WeightRenaming)]
        converters = [item for item in transforms if isinstance(item, WeightConverter)]
        by_pattern = {pattern: item for item in converters for pattern in item.source_patterns}
        prefix, groups = model.base_model_prefix, dict[str, _Group]()
        for key in sorted(stored, key=dot_natural_key):  # experts in their order
            name, pattern = rename_source_key(key, renamings, converters, prefix, self.wanted)
            if name not in self.wanted and key in self.wanted:
                name, pattern = rename_source_key(key, [], [], prefix, self.wanted)
            if name not in self.wanted:
                continue  # as loading passes it over
            if pattern is not None:
                group = groups.setdefault(name, _Group(name, by_pattern[pattern]))
                group.parts.append((stored[key], pattern))
            else:
                groups.setdefault(name, _Group(name, None, [(stored[key], key)], (name,)))
        for group in groups.values():
            if group.converter is not None:
                group.targets = tuple(self._convert(group, empty=True))
            self._groups |= dict.fromkeys(group.targets, group)

    def has(self, name: str) -> bool:
        """Whether a tensor of the model is in the checkpoint."""
        return name in self._groups

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor of the model in pieces that follow each other in memory, as `CHUNK_BYTES` says.

        Args:
            name: Its name in the model. What transformers converts comes in one piece.
        """
        group = self._groups[name]
        if group.converter is not None:
            yield self.tensors([name])[name]
            return
        (part, _), dtype = group.parts[0], self.wanted[name].dtype
        if not part.shape or not all(part.shape):
            yield _read(part).to(dtype)
            return
        row = max(1, torch.Size(part.shape).numel() // part.shape[0] * dtype.itemsize)
        step = max(1, CHUNK_BYTES // row)
        for start in range(0, part.shape[0], step):
            with safe_open(part.file, framework="pt") as file:  # opened anew: what was read before is no longer mapped
                yield file.get_slice(part.name)[start : start + step].to(dtype)

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors of the model.

        Args:
            names: Their names in the model.

        Raises:
            BrokenCheckpointError: One has another shape than the model's.
        """
        names = dict.fromkeys(names)
        found: dict[str, Tensor] = {}
        for group in {self._groups[name].name: self._groups[name] for name in names}.values():
            if group.converter is None:
                part, _ = group.parts[0]
                found[group.name] = _read(part).to(self.wanted[group.name].dtype)
            else:
                found |= {name: item for name, item in self._convert(group).items() if name in names}
        for name, tensor in found.items():
            if tensor.shape != self.wanted[name].shape:
                raise BrokenCheckpointError(
                    f"the checkpoint has {name!r} as {list(tensor.shape)}, where the model has "
                    f"{list(self.wanted[name].shape)}: fetch it anew"
                )
        return found

    def _convert(self, group: _Group, *, empty: bool = False) -> dict[str, Tensor]:
        """Has transformers convert a group; without reading anything, where only names and shapes matter."""
        assert group.converter is not None
        converter = copy.deepcopy(group.converter)
        dtype = self.wanted[group.name].dtype

        def reader(part: StoredTensor) -> Any:
            if empty:
                return lambda: torch.empty(part.shape, dtype=dtype, device="meta")
            return lambda: _read(part).to(dtype)

        for part, pattern in group.parts:
            converter.add_tensor(group.name, part.name, pattern, reader(part))
        try:
            made = converter.convert(group.name, model=self.model, config=self.model.config)
        except Exception as error:  # of transformers' operations
            raise UnsupportedModelError(
                f"{group.name} cannot be made of what the checkpoint holds without all of it: leave --stream out"
            ) from error
        return {name: item[0] if isinstance(item, list) else item for name, item in made.items()}


def _read(part: StoredTensor) -> Tensor:
    """A tensor of a checkpoint, mapped from its file until nobody has it any more."""
    with safe_open(part.file, framework="pt") as file:
        return file.get_tensor(part.name)
