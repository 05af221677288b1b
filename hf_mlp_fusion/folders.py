"""Reading model folders and Hub repositories: stock models, single files, and what lies beside the weights."""

from __future__ import annotations

import os
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoModel, PreTrainedModel

from .errors import BrokenCheckpointError, FusionConfigError, UnsupportedModelError

__all__ = [
    "SIDE_FILES",
    "carry_side_files",
    "check_inside",
    "load_fused_model",
    "load_stock_model",
    "locate_file",
    "read_config",
]

# What belongs to a model besides its weights, config and generation config (`save_pretrained` writes those):
# tokenizers, processors, and the module list of sentence-transformers. Never code, never the base model's card.
SIDE_FILES = (
    "added_tokens.json",
    "chat_template.j*",
    "config_sentence_transformers.json",
    "merges.txt",
    "modules.json",
    "preprocessor_config.json",
    "processor_config.json",
    "sentence_*_config.json",
    "sentencepiece*.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer*.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "[0-9]_*/config.json",
)


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


def load_fused_model(name_or_path: str, *, dtype: str = "auto", device: str = "cpu") -> PreTrainedModel:
    """Loads a fused model with the head it was saved with. Only safetensors are read.

    Args:
        name_or_path: A folder or a Hub id.
        dtype: Name of a torch dtype, or `"auto"` for the one that the weights are stored in.
        device: Device to load it to.

    Raises:
        FusionConfigError: There is no such folder or repository.
        UnsupportedModelError: It is not fused, or has no safetensors.
        BrokenCheckpointError: Its files are broken.
    """
    from . import modeling

    config = read_config(name_or_path)
    if getattr(config, "mlp_fusion", None) is None:
        raise UnsupportedModelError(
            f"{name_or_path} is not fused; fuse it with `hf-mlp-fusion fuse {name_or_path} OUT`"
        )
    architecture = (config.architectures or ["AutoModel"])[0]
    cls = AutoModel if architecture == "AutoModel" else getattr(modeling, str(architecture), None)
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
    _check_exists(name_or_path)
    try:
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)  # else it asks at the terminal
    except (OSError, ValueError) as error:
        raise FusionConfigError(f"{name_or_path} has no readable config.json: {_first_line(error)}") from error


def _load(cls: Any, name_or_path: str, config: Any, dtype: str, device: str) -> Any:
    kwargs: dict[str, Any] = {} if device == "cpu" else {"device_map": {"": device}}
    try:
        return cls.from_pretrained(name_or_path, config=config, dtype=dtype, use_safetensors=True, **kwargs)
    except OSError as error:
        if "safetensors" in str(error):
            raise UnsupportedModelError(
                f"{name_or_path} has no safetensors weights, and pickles are not read: convert it first, with "
                "model.save_pretrained() in an environment that you trust it in"
            ) from error
        raise BrokenCheckpointError(f"{name_or_path} could not be loaded: {_first_line(error)}") from error
    except Exception as error:
        # safetensors has its own exception type, and transformers raises RuntimeError on shape mismatches.
        raise BrokenCheckpointError(f"{name_or_path} could not be loaded: {_first_line(error)}") from error


def locate_file(name_or_path: str, filename: str) -> Path | None:
    """Finds a file of a model folder or Hub repository; None where it has none of that name.

    Raises:
        FusionConfigError: There is no such folder or repository.
    """
    _check_exists(name_or_path)
    if os.path.isdir(name_or_path):
        path = Path(name_or_path) / filename
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name_or_path, filename))
    except LocalEntryNotFoundError as error:
        raise FusionConfigError(f"{name_or_path}: no such folder, and the Hub cannot be reached") from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError) as error:
        raise FusionConfigError(f"{name_or_path} could not be fetched: {_first_line(error)}") from error


def _check_exists(name_or_path: str) -> None:
    """Tells a mistyped path from a Hub id before anything is looked up on the network."""
    looks_like_path = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    if not os.path.isdir(name_or_path) and (looks_like_path or os.path.exists(name_or_path)):
        raise FusionConfigError(f"{name_or_path}: no such folder; give a model folder or a Hub id such as gpt2")


def carry_side_files(name_or_path: str, folder: Path) -> None:
    """Copies tokenizer files and their like, byte for byte, from a model into a folder.

    Args:
        name_or_path: The folder or Hub id of the model that was fused.
        folder: Where to copy to.

    Raises:
        BrokenCheckpointError: One of them is a link that leads out of the model's folder.
    """
    if not os.path.isdir(name_or_path):
        from huggingface_hub import snapshot_download

        name_or_path = snapshot_download(name_or_path, allow_patterns=list(SIDE_FILES))
    source = Path(name_or_path)
    for path in sorted([*source.glob("*"), *source.glob("[0-9]_*/*")]):
        relative = path.relative_to(source)
        if path.is_file() and any(fnmatchcase(str(relative), pattern) for pattern in SIDE_FILES):
            check_inside(path, source)
            (folder / relative).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / relative)


def check_inside(path: Path, folder: Path) -> None:
    """Refuses a link that leads out of a folder: what is copied or pushed by its name might be anyone's secret.

    Args:
        path: A file in the folder.
        folder: The folder. In the Hub's cache, whose snapshots link to blobs, all of the repository's cache.

    Raises:
        BrokenCheckpointError: It leads out.
    """
    root = folder.resolve()
    if root.parent.name == "snapshots":
        root = root.parent.parent
    if not path.resolve().is_relative_to(root):
        raise BrokenCheckpointError(f"{path} is a link that leads out of the folder: put the file itself there")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
