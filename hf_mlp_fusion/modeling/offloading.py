"""Models that do not fit into memory: their layers stay on disk, and one at a time is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, SequentialHook, remove_hook_from_module
from accelerate.utils import named_module_tensors, set_module_tensor_to_device
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from .find import find_ffns
from .loading import load_whole, stock_class

__all__ = ["LayerLoader", "chained_layers", "load_offloaded_model"]


def load_offloaded_model(name_or_path: str, folder: Path, *, dtype: str = "auto", device: str = "cpu") -> Any:
    """Loads a stock model with its layers left on disk; accelerate's hooks load what a forward needs.

    Args:
        name_or_path: A folder or a Hub id.
        folder: Where weights go that are not on disk as the model has them (experts that are stacked on loading).
        dtype: As for `load_stock_model`.
        device: Where the rest lies, and where layers run.

    Raises:
        FusionError: As `load_stock_model`.
    """
    stock, config = stock_class(name_or_path)

    def places(cls: Any) -> dict[str, str]:
        with torch.device("meta"):
            empty = AutoModel.from_config(config) if cls is AutoModel else cls(config)
        found: dict[str, str] = {}
        _place(empty, "", set(_layer_lists(empty)), found, device)
        return found

    return load_whole(stock, name_or_path, config=config, dtype=dtype, places=places, offload_folder=str(folder))


def _place(module: nn.Module, path: str, layers: set[str], places: dict[str, str], device: str) -> None:
    """Says of all parts of a module where they are to be: layers on disk, all else on a device."""
    for name, _ in module.named_parameters(prefix=path, recurse=False):
        places[name] = device
    for name, _ in module.named_buffers(prefix=path, recurse=False):
        places[name] = device
    for name, child in module.named_children():
        full = f"{path}.{name}" if path else name
        if path in layers:
            places[full] = "disk"
        elif any(layer == full or layer.startswith(f"{full}.") for layer in layers):
            _place(child, full, layers, places, device)
        else:
            places[full] = device


def _layer_lists(model: PreTrainedModel) -> list[str]:
    """The lists of layers that FFNs are in, by name."""
    found: dict[str, None] = {}
    for ffn in find_ffns(model):
        parts = ffn.full_name.split(".")
        for number in range(1, len(parts)):
            path = ".".join(parts[:number])
            if parts[number].isdigit() and isinstance(model.get_submodule(path), nn.ModuleList):
                found[path] = None
                break
    return list(found)


def chained_layers(model: PreTrainedModel) -> list[str]:
    """The layers of a model, by name, where they are one list that runs in order; else none."""
    lists = _layer_lists(model)
    if len(lists) != 1:
        return []
    count = len(model.get_submodule(lists[0]))  # type: ignore[arg-type]
    if count != getattr(model.config.get_text_config(), "num_hidden_layers", None):  # ALBERT's run again and again
        return []
    return [f"{lists[0]}.{number}" for number in range(count)]


class LayerLoader:
    """Loads one layer at a time of a model that `load_offloaded_model` gave, whose hooks it takes from the layers.

    Args:
        model: The model.
        layers: The layers, by name.
        device: Where they are to run.
    """

    def __init__(self, model: PreTrainedModel, layers: list[str], device: torch.device) -> None:
        self.device = device
        self._weights: dict[str, list[tuple[nn.Module, str, Mapping[str, Tensor]]]] = {}
        for name in layers:
            layer = model.get_submodule(name)
            self._weights[name] = [
                (module, tensor, hook.weights_map)
                for module in layer.modules()
                for hook in _hooks(module)
                for tensor, _ in named_module_tensors(
                    module, include_buffers=hook.offload_buffers, recurse=hook.place_submodules
                )
                if tensor in hook.weights_map
            ]
            remove_hook_from_module(layer, recurse=True)

    @contextlib.contextmanager
    def loaded(self, name: str) -> Iterator[None]:
        """Holds a layer in memory.

        Args:
            name: The layer.
        """
        try:
            for module, tensor, weights in self._weights[name]:
                set_module_tensor_to_device(module, tensor, self.device, value=weights[tensor])
            yield
        finally:
            for module, tensor, _ in self._weights[name]:
                set_module_tensor_to_device(module, tensor, "meta")


def _hooks(module: nn.Module) -> list[AlignDevicesHook]:
    """The hooks of a module that load its own tensors."""
    hook: ModelHook | None = getattr(module, "_hf_hook", None)
    every = hook.hooks if isinstance(hook, SequentialHook) else [hook]
    return [item for item in every if isinstance(item, AlignDevicesHook) and item.offload and item.weights_map]
