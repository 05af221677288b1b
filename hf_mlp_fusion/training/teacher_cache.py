"""What a teacher predicts of each row, kept in files: for a teacher that does not fit beside its student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from ..data import LANGUAGE_OBJECTIVES, Batch, Progress, fitting_pieces, objective_of, on_device
from ..errors import FusionConfigError
from ..files import write_bytes
from ..measure import LogitDivergence

__all__ = ["TEACHER_IDS", "TEACHER_VALUES", "CachedRows", "cache_predictions", "check_cache"]

TEACHER_IDS, TEACHER_VALUES = "teacher_ids", "teacher_log_probs"
"""Columns of rows: the tokens that the teacher predicts most, and their log-probabilities, `[tokens, k]`."""

_ROWS = 32  # of a file


class CachedRows(Dataset[dict[str, Tensor]]):
    """Rows with what a teacher predicts of them, read from files one by one.

    Args:
        rows: The rows.
        folder: Where `cache_predictions` has put the files.
    """

    def __init__(self, rows: Sequence[dict[str, Tensor]], folder: Path) -> None:
        self.rows, self.folder = rows, folder

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """A row, with two more columns."""
        with safe_open(_file(self.folder, number), framework="pt") as file:
            kept = {name: file.get_tensor(f"{name}.{number}") for name in (TEACHER_IDS, TEACHER_VALUES)}
        return self.rows[number] | kept


def check_cache(model: PreTrainedModel, target: str, count: int) -> None:
    """Checks that predictions can be kept.

    Args:
        model: The teacher.
        target: The target of the tuning.
        count: Tokens of the vocabulary to keep of each prediction.

    Raises:
        FusionConfigError: They cannot, and why.
    """
    if target != "logits" or objective_of(model) not in LANGUAGE_OBJECTIVES:
        raise FusionConfigError("predictions are kept for target='logits' of language models: leave cache_logits out")
    head: Any = model.get_output_embeddings()
    if not 1 <= count < len(head.weight):
        raise FusionConfigError(f"cache_logits must be 1 to {len(head.weight) - 1}, not {count}")


def cache_predictions(
    teacher: PreTrainedModel,
    fused: PreTrainedModel,
    rows: Sequence[dict[str, Tensor]],
    count: int,
    folder: Path,
    collate: Callable[[Sequence[dict[str, Tensor]]], Batch],
) -> None:
    """Writes what a teacher predicts of rows into files; those that are there already, and whole, stay.

    Args:
        teacher: The teacher, where it is to run.
        fused: The student.
        rows: The rows.
        count: Tokens of the vocabulary to keep of each prediction, k.
        folder: Where to.
        collate: Makes a batch of rows.
    """
    pair = LogitDivergence(teacher, fused)
    with Progress(len(rows), "teacher", shorter="fewer texts need less") as progress:
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            path = _file(folder, start)
            if not _is_whole(path):
                whole = not pair.in_pieces(on_device(collate(some[:1]), teacher))
                kept: dict[str, Tensor] = {}
                number = start
                for piece in fitting_pieces(teacher, [collate(some)], logits=whole):
                    for ids, values in zip(*pair.top(on_device(piece, teacher), count), strict=True):
                        length = _length(rows[number])
                        kept[f"{TEACHER_IDS}.{number}"] = ids[:length].cpu().contiguous()
                        kept[f"{TEACHER_VALUES}.{number}"] = values[:length].cpu().contiguous()
                        number += 1
                write_bytes(path, save(kept))
            progress.update(len(some))


def _length(row: dict[str, Any]) -> int:
    return len(row["decoder_input_ids" if "decoder_input_ids" in row else "input_ids"])


def _file(folder: Path, number: int) -> Path:
    return folder / f"teacher-{number // _ROWS:05}.safetensors"


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False
