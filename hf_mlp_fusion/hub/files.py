"""What of a fused folder goes to the Hub, and what stays."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import BrokenCheckpointError
from ..recipe import REPORT_NAME
from .side_files import PICKLES, check_inside, side_files_of

__all__ = ["WEIGHTS", "ModelFiles", "sort_files"]

WEIGHTS = ("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json")
_UPLOADED = (
    "config.json",
    "generation_config.json",
    *WEIGHTS,
    REPORT_NAME,
    "README.md",
    "LICENSE*",
    "NOTICE*",
    "*.png",
)
# What Trainer leaves beside a model. None of it is read here or uploaded, so it does no harm.
_TRAINER_STATE = ("training_args.bin", "optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*.pth")


@dataclass(frozen=True)
class ModelFiles:
    """The files of a fused folder, as paths relative to it.

    Args:
        uploaded: What belongs to the model.
        left: What does not: checkpoints, logs, code; of what lies deeper, the folder at the top.
    """

    uploaded: list[str]
    left: list[str]


def sort_files(folder: Path) -> ModelFiles:
    """Sorts the files of a fused folder into those that go to the Hub and those that stay.

    Args:
        folder: The folder.

    Raises:
        BrokenCheckpointError: It holds weights in pickles, or a file of the model is a link that leads out of it.
    """
    side = side_files_of(folder)
    uploaded: list[str] = []
    left: dict[str, None] = {}
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        name = path.relative_to(folder).as_posix()
        own = any(fnmatchcase(name, pattern) and pattern.count("/") == name.count("/") for pattern in _UPLOADED)
        if own or side.has(name):
            check_inside(path, folder)
            uploaded.append(name)
        elif path.suffix in PICKLES and not any(fnmatchcase(path.name, pattern) for pattern in _TRAINER_STATE):
            raise BrokenCheckpointError(
                f"{path} is a pickle, or may be one: those who load it would run what it holds. "
                "Remove it, or push another folder; weights go as safetensors"
            )
        else:
            first, slash, _ = name.partition("/")
            left[first + slash] = None
    return ModelFiles(uploaded, list(left))
