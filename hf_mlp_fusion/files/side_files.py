"""What lies beside a model's weights: tokenizers and the like, carried from one folder to another."""

from __future__ import annotations

import os
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import BrokenCheckpointError

__all__ = ["SIDE_FILES", "carry_side_files", "check_inside"]

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
