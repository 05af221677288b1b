"""What files a tokenizer is kept in: its class knows."""

from __future__ import annotations

from pathlib import Path

from ..errors import BrokenCheckpointError
from ..files import read_object

__all__ = ["vocabulary_files"]


def vocabulary_files(folder: Path) -> set[str]:
    """The names of the files that the class of a folder's tokenizer keeps its vocabulary in.

    Args:
        folder: The folder. Its class is read from `tokenizer_config.json`, or goes by the model's type.
    """
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    model_type = str(_value(folder / "config.json", "model_type")).removeprefix("fused_")
    names = (_value(folder / "tokenizer_config.json", "tokenizer_class"), TOKENIZER_MAPPING_NAMES.get(model_type))
    found: set[str] = set()
    for name in names:
        for variant in (name, name.removesuffix("Fast")) if isinstance(name, str) else ():
            files = getattr(getattr(transformers, variant, None), "vocab_files_names", None)
            found.update(file for file in (files or {}).values() if isinstance(file, str) and "/" not in file)
    return found


def _value(path: Path, name: str) -> object:
    try:
        return read_object(path).get(name) if path.is_file() else None
    except BrokenCheckpointError:
        return None
