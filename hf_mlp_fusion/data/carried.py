"""Models saved with all that lies beside their originals, and tried before they are called saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BrokenCheckpointError, DataError
from ..hub import carry_side_files
from .texts import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["save_carrying"]

_PROBE = "A text, with words: 1 and 2."


def save_carrying(model: PreTrainedModel, source: str, folder: Path, **kwargs: Any) -> None:
    """Saves a model with what lies beside its original, and loads the tokenizer, where there is one, from there.

    Args:
        model: The model.
        source: Folder or Hub id of the original.
        folder: Where to save it.
        **kwargs: More for `save_pretrained`.

    Raises:
        BrokenCheckpointError: Something beside the original is broken, or its tokenizer did not survive.
    """
    carry_side_files(source, folder)
    model.save_pretrained(folder, **kwargs)
    try:
        before = load_tokenizer(source)
    except DataError:  # there was none, or none that loads
        return
    try:
        same = load_tokenizer(str(folder))(_PROBE)["input_ids"] == before(_PROBE)["input_ids"]
    except DataError as error:
        raise BrokenCheckpointError(
            f"the tokenizer of {source} cannot be carried along: save it anew beside the model, "
            f"with tokenizer.save_pretrained ({error})"
        ) from error
    if not same:
        raise BrokenCheckpointError(
            f"the tokenizer of {source} cuts texts otherwise where its files were copied to: save it anew beside the "
            "model, with tokenizer.save_pretrained"
        )
