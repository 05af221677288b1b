"""What lies beside a model's weights: tokenizers and the like, carried from one folder to another."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ..errors import BrokenCheckpointError
from ..files import locate_file
from .tokenizer_files import vocabulary_files

__all__ = ["PICKLES", "SideFiles", "carry_side_files", "check_inside", "check_side_files", "side_files_of"]

PICKLES = (".bin", ".ckpt", ".h5", ".joblib", ".msgpack", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")
"""Endings of files that are pickles, or may be."""

# What belongs to a model besides its weights, config and generation config (`save_pretrained` writes those):
# tokenizers, processors, and the module list of sentence-transformers. Never code, never the base model's card.
_SIDE_FILES = (
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
_CODE = (".py", ".pyc", ".so", ".sh", ".ipynb")


@dataclass(frozen=True)
class SideFiles:
    """Which files of a model's folder belong to it besides its weights and config.

    Args:
        patterns: Names, with `*`.
        modules: Folders of sentence-transformers' modules, of which everything belongs to it but code and pickles.
    """

    patterns: tuple[str, ...]
    modules: tuple[str, ...]

    def has(self, name: str) -> bool:
        """Whether a file belongs to it, by its path below the folder."""
        if any(fnmatchcase(name, item) and item.count("/") == name.count("/") for item in self.patterns):
            return True
        inside = any(name.startswith(f"{module}/") for module in self.modules)
        return inside and PurePosixPath(name).suffix not in (*_CODE, *PICKLES)


def side_files_of(folder: Path) -> SideFiles:
    """Asks a folder's tokenizer and its list of modules for the files that belong to them.

    Args:
        folder: The folder of a model.

    Raises:
        BrokenCheckpointError: `modules.json` is broken, or leads out of the folder.
    """
    return SideFiles((*_SIDE_FILES, *sorted(vocabulary_files(folder))), _modules(folder / "modules.json"))


def carry_side_files(name_or_path: str, folder: Path) -> None:
    """Copies tokenizer files and their like, byte for byte, from a model into a folder.

    Args:
        name_or_path: The folder or Hub id of the model that was fused.
        folder: Where to copy to.

    Raises:
        BrokenCheckpointError: One of them is a link that leads out of the model's folder, or a module's weights are
            pickles.
    """
    source, side = _side_files(name_or_path)
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        relative = path.relative_to(source).as_posix()
        if side.has(relative):
            check_inside(path, source)
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / relative)


def check_side_files(name_or_path: str) -> None:
    """Checks that what lies beside a model can be carried, before there is anything to carry it to.

    Args:
        name_or_path: The folder or Hub id of the model.

    Raises:
        BrokenCheckpointError: `modules.json` is broken, or a module's weights are pickles.
    """
    source, side = _side_files(name_or_path)
    for module in side.modules:
        kept = [path for path in (source / module).rglob("*") if path.is_file()]
        pickles = [path for path in kept if path.suffix in PICKLES]
        if pickles and not any(path.suffix == ".safetensors" for path in kept):
            raise BrokenCheckpointError(
                f"{pickles[0]} is a pickle, which is not carried along, and without it the module would not load: "
                "save the model anew with SentenceTransformer(...).save(), in an environment that you trust it in"
            )


def _side_files(name_or_path: str) -> tuple[Path, SideFiles]:
    if os.path.isdir(name_or_path):
        return Path(name_or_path), side_files_of(Path(name_or_path))
    from huggingface_hub import snapshot_download

    found = [locate_file(name_or_path, name) for name in ("modules.json", "config.json", "tokenizer_config.json")]
    folder = next((path.parent for path in found if path is not None), None)
    side = side_files_of(folder) if folder is not None else SideFiles(_SIDE_FILES, ())
    wanted = [*side.patterns, *(f"{module}/*" for module in side.modules)]
    return Path(snapshot_download(name_or_path, allow_patterns=wanted)), side


def _modules(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        names = [module["path"] for module in listed]
        ways = [PurePosixPath(name) for name in names if name]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BrokenCheckpointError(f"{path} is broken: it must list modules with their paths") from error
    for way in ways:
        if way.is_absolute() or ".." in way.parts or "\\" in str(way):
            raise BrokenCheckpointError(f"{path} leads out of the folder: {str(way)!r:.80}")
    return tuple(str(way) for way in ways)


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
