"""Loading models from folders and the Hub, stock or fused, with the head that they were saved with."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, PreTrainedModel

from ..errors import (
    BrokenCheckpointError,
    FusionConfigError,
    MemoryLimitError,
    UnsupportedModelError,
    is_memory_shortage,
)
from ..families import FAMILIES
from ..files import check_exists
from .classes import find_class
from .find import find_ffns

__all__ = ["check_nothing_missing", "load_for_task", "load_fused_model", "load_stock_model", "read_config"]


def load_stock_model(name_or_path: str, *, dtype: str = "auto", device: str = "cpu") -> PreTrainedModel:
    """Loads a model with the head it was saved with. Only safetensors are read and no remote code is run.

    Args:
        name_or_path: A folder or a Hub id.
        dtype: Name of a torch dtype, or `"auto"` for the one that the weights are stored in.
        device: Device to load it to.

    Raises:
        FusionConfigError: There is no such folder or repository.
        UnsupportedModelError: Its model class is none of transformers' own, or it has no safetensors.
        BrokenCheckpointError: Its files are broken.
        MemoryLimitError: It is too large for the memory there is.
    """
    config = read_config(name_or_path)
    architecture = (config.architectures or [None])[0]
    stock = getattr(transformers, architecture, None) if isinstance(architecture, str) else AutoModel
    if architecture and architecture.startswith("Fused"):
        raise UnsupportedModelError(
            f"{name_or_path} is fused already, and fusion cannot be repeated or undone: start from the original"
        )
    if stock is None:
        raise UnsupportedModelError(f"{name_or_path} has the class {architecture!r}, which transformers does not know")
    return _load(stock, name_or_path, config, dtype, device)


def load_for_task(auto_class: Any, name_or_path: str, **kwargs: Any) -> PreTrainedModel:
    """Loads a stock model in float32 with the head of a task, which may be new. Only safetensors are read.

    Args:
        auto_class: The `AutoModelFor...` of the task.
        name_or_path: A folder or a Hub id.
        kwargs: What else `from_pretrained` is to know.

    Raises:
        BrokenCheckpointError: Weights of its layers are missing.
    """
    model, info = auto_class.from_pretrained(
        name_or_path, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **kwargs
    )
    known = model.config.model_type in FAMILIES
    layers = {f"{ffn.prefix}{ffn.spec.layers_path(ffn.name)}." for ffn in find_ffns(model)} if known else set()
    check_nothing_missing(name_or_path, [name for name in info["missing_keys"] if name.startswith(tuple(layers))])
    return model


def load_fused_model(name_or_path: str, *, dtype: str = "auto", device: str = "cpu") -> PreTrainedModel:
    """As `load_stock_model`, of a fused model.

    Args:
        name_or_path: A folder or a Hub id.
        dtype: As for `load_stock_model`.
        device: As for `load_stock_model`.

    Raises:
        UnsupportedModelError: It is not fused, or has no safetensors.
        FusionConfigError: As `load_stock_model`.
        BrokenCheckpointError: As `load_stock_model`.
        MemoryLimitError: As `load_stock_model`.
    """
    config = read_config(name_or_path)
    if getattr(config, "mlp_fusion", None) is None:
        raise UnsupportedModelError(
            f"{name_or_path} is not fused; fuse it with `hf-mlp-fusion fuse {name_or_path} OUT`"
        )
    architecture = (config.architectures or ["AutoModel"])[0]
    cls = AutoModel if architecture == "AutoModel" else find_class(str(architecture))
    if cls is None:
        raise UnsupportedModelError(
            f"{name_or_path} has the class {architecture!r}, which hf_mlp_fusion does not know"
        )
    return _load(cls, name_or_path, config, dtype, device)


def read_config(name_or_path: str) -> Any:
    """Reads the config of a model, stock or fused. No remote code is run.

    Args:
        name_or_path: A folder or a Hub id.

    Raises:
        FusionConfigError: There is no such folder or repository, or it has no legible config.
    """
    check_exists(name_or_path)
    try:
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)  # else it asks at the terminal
    except (OSError, ValueError) as error:
        raise FusionConfigError(f"{name_or_path} has no readable config.json: {_first_line(error)}") from error


def _load(cls: Any, name_or_path: str, config: Any, dtype: str, device: str) -> Any:
    kwargs: dict[str, Any] = {} if device == "cpu" else {"device_map": {"": device}}
    try:
        model, info = cls.from_pretrained(
            name_or_path, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **kwargs
        )
    except Exception as error:
        # safetensors has its own exception type, and transformers raises RuntimeError on shape mismatches.
        if is_memory_shortage(error):
            raise MemoryLimitError(
                f"{name_or_path} does not fit into memory: free some, or raise its limit"
            ) from error
        _check_permissions(name_or_path)
        if isinstance(error, OSError) and "safetensors" in str(error):
            raise UnsupportedModelError(
                f"{name_or_path} has no safetensors weights, and pickles are not read: convert it first, with "
                "model.save_pretrained() in an environment that you trust it in"
            ) from error
        raise BrokenCheckpointError(f"{name_or_path} could not be loaded: {_first_line(error)}") from error
    check_nothing_missing(name_or_path, info["missing_keys"])
    return model


def check_nothing_missing(name_or_path: str, missing: Iterable[str]) -> None:
    """Refuses a model of which weights are missing in the checkpoint: they would be random, and be fused as such.

    Args:
        name_or_path: Where it came from.
        missing: Names of the weights that `from_pretrained` did not find.

    Raises:
        BrokenCheckpointError: There are some.
    """
    names = sorted(missing)
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise BrokenCheckpointError(
            f"the checkpoint {name_or_path} lacks {names[0]!r}{more}, which would be random numbers: fetch its files "
            "anew, or mend model_type and architectures in its config.json"
        )


def _check_permissions(name_or_path: str) -> None:
    """Says so where a file of a model folder may not be read, which libraries call a missing or broken file."""
    folder = Path(name_or_path)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_file() and not os.access(path, os.R_OK):
            raise FusionConfigError(f"{path} may not be read: give its reader the permission")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
