"""Loading models from folders and the Hub, stock or fused, with the head that they were saved with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
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
from ..files import available_bytes, check_exists, check_readable, check_room, files_like
from .classes import find_class
from .held_back import held_back
from .loading_checks import check_nothing_missing

__all__ = ["fits", "load_fused_model", "load_stock_model", "load_whole", "read_config", "stock_class", "stored_bytes"]

logger = logging.getLogger(__name__)

_LEAVES = 0.7  # of the memory, to weights


def load_stock_model(name_or_path: str, *, dtype: str = "auto", device: str = "cpu") -> PreTrainedModel:
    """Loads a model with the head it was saved with. Only safetensors are read and no remote code is run.

    Args:
        name_or_path: A folder or a Hub id.
        dtype: Name of a torch dtype, or `"auto"` for the one that the weights are stored in.
        device: Device to load it to; on `"meta"` it has no weights, and all checks are made all the same.

    Raises:
        FusionConfigError: There is no such folder or repository.
        UnsupportedModelError: Its model class is none of transformers' own, or it has no safetensors.
        BrokenCheckpointError: Its files are broken.
        MemoryLimitError: It is too large for the memory there is.
    """
    stock, config = stock_class(name_or_path)
    return load_whole(stock, name_or_path, config=config, dtype=dtype, device=device)


def stock_class(name_or_path: str) -> tuple[Any, Any]:
    """The class of a stock model, or `AutoModel` where it names none, and its config.

    Args:
        name_or_path: A folder or a Hub id.

    Raises:
        FusionConfigError: There is no such folder or repository.
        UnsupportedModelError: Its model class is none of transformers' own.
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
    return stock, config


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
    return load_whole(cls, name_or_path, config=config, dtype=dtype, device=device)


def read_config(name_or_path: str) -> Any:
    """Reads the config of a model, stock or fused. No remote code is run.

    Args:
        name_or_path: A folder or a Hub id.

    Raises:
        FusionConfigError: There is no such folder or repository, or it has no legible config.
    """
    check_exists(name_or_path)
    check_readable(name_or_path, "config.json")
    try:
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)  # else it asks at the terminal
    except (OSError, ValueError) as error:
        raise FusionConfigError(f"{name_or_path} has no readable config.json: {_first_line(error)}") from error


def load_whole(
    cls: Any,
    name_or_path: str,
    *,
    dtype: Any = "auto",
    new_head: bool = False,
    device: str = "cpu",
    places: Callable[[Any], dict[str, str]] | None = None,
    **kwargs: Any,
) -> Any:
    """Loads a model, and refuses checkpoints that lack some of its weights. Only safetensors are read.

    Args:
        cls: A model class, or an Auto class.
        name_or_path: A folder or a Hub id.
        dtype: A torch dtype or its name, or `"auto"` for the one that the weights are stored in.
        new_head: Whether it may get a new head, which no checkpoint has yet.
        device: Device to load it to.
        places: Gives the `device_map` of a model of a class, instead; of one that is not to be held whole.
        **kwargs: More for `from_pretrained`.

    Raises:
        UnsupportedModelError: It has no safetensors.
        BrokenCheckpointError: Its files are broken, cannot be read, or lack weights.
    """
    if places is not None:
        kwargs["device_map"] = places(cls)
    elif device == "meta":  # nothing is held
        kwargs["device_map"] = {"": device}
    else:
        stored = stored_bytes(name_or_path)
        check_room(stored, torch.device(device), f"loading {name_or_path}", "free some, or raise the limit")
        if device != "cpu":
            kwargs["device_map"] = {"": device}
    with held_back() as messages:
        model, info = _loaded(cls, name_or_path, dtype=dtype, **kwargs)
        headless = not new_head and _lacks_its_head(model, info["missing_keys"])
        if headless:  # what they say is of the head that is not there
            messages.clear()
    if headless:
        # Sentence encoders often name the head that they were pretrained with, and have their body alone.
        logger.info("%s has nothing of the head of a %s: its body is loaded", name_or_path, type(model).__name__)
        return load_whole(AutoModel, name_or_path, dtype=dtype, device=device, places=places, **kwargs)
    check_nothing_missing(model, info, name_or_path, new_head=new_head)
    return model


def _loaded(cls: Any, name_or_path: str, **kwargs: Any) -> tuple[Any, Any]:
    try:
        return cls.from_pretrained(name_or_path, use_safetensors=True, output_loading_info=True, **kwargs)
    except Exception as error:
        # safetensors has its own exception type, and transformers raises RuntimeError on shape mismatches.
        if is_memory_shortage(error):
            raise MemoryLimitError(
                f"{name_or_path} does not fit into memory: free some, or raise its limit"
            ) from error
        check_readable(name_or_path, "*.safetensors*")
        pickled = isinstance(error, OSError) and "safetensors" in str(error)
        if pickled and not files_like(name_or_path, "*.safetensors*"):
            raise UnsupportedModelError(
                f"{name_or_path} has no safetensors weights, and pickles are not read: convert it first, with "
                "model.save_pretrained() in an environment that you trust it in"
            ) from error
        raise BrokenCheckpointError(f"{name_or_path} could not be loaded: {_first_line(error)}") from error


def _lacks_its_head(model: PreTrainedModel, missing: Iterable[str]) -> bool:
    """Whether nothing of a model's head, and all of its body, came from the checkpoint."""
    base = f"{model.base_model_prefix}."
    head = {name for name, _ in model.named_parameters() if not name.startswith(base)}
    body_is_whole = not any(name.startswith(base) for name in missing)
    return model.base_model is not model and bool(head) and head <= set(missing) and body_is_whole


def fits(name_or_path: str, device: str) -> bool:
    """Whether a checkpoint and what it is run with fit into memory, as far as is known before it is loaded.

    Args:
        name_or_path: A folder or a Hub id.
        device: Where it is to be loaded.
    """
    return stored_bytes(name_or_path) < _LEAVES * available_bytes(torch.device(device))


def stored_bytes(name_or_path: str) -> int:
    """Bytes of a folder's weights, which loading takes at least; 0 where they are not known."""
    folder = Path(name_or_path)
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else folder.glob("model-?????-of-?????.safetensors")
    return sum(path.stat().st_size for path in files)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
