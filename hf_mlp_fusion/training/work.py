"""The folder of a tuning that goes on where it was stopped: checkpoints of `Trainer`, and which run they are of."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import BrokenCheckpointError
from ..files import check_same_run, claimed, read_object, write_text

__all__ = ["SaveNowAndThen", "Work", "digest_of", "fingerprint", "open_work"]

_SAVE_SECONDS = 60.0  # between checkpoints
_SAMPLE = 64  # numbers of each tensor by which models are told apart
_RUN, _TEXTS = "run.json", "sampled.json"


class Work:
    """A folder of work.

    Args:
        folder: The folder; it exists.
        kept: Whether what is in it shall be found again. If not, no checkpoints are written.
    """

    def __init__(self, folder: Path, kept: bool) -> None:
        self.folder, self.kept = folder, kept

    def texts(self) -> list[str] | None:
        """The texts that the model wrote for this run before it was stopped; None where there are none."""
        path = self.folder / _TEXTS
        return list(read_object(path)["texts"]) if path.is_file() else None

    def keep_texts(self, texts: Sequence[str]) -> None:
        """Keeps the texts that the model wrote: on a GPU, it would not write the same again."""
        write_text(self.folder / _TEXTS, json.dumps({"texts": list(texts)}))

    def begin(self, run: Mapping[str, Any], rows_at_once: int) -> int:
        """Notes which run this is, or makes sure that what lies here is of the same.

        Args:
            run: What the run's result depends on, as `fingerprint` and options give it: plain JSON values.
            rows_at_once: Rows that run through the models at once, which depends on the memory that is free.

        Returns:
            Rows at once as the run has begun with: it shall add up what it would have added up.

        Raises:
            FusionConfigError: It is of another run.
        """
        path = self.folder / _RUN
        if not path.is_file():
            write_text(path, json.dumps({"run": dict(run), "rows_at_once": rows_at_once}))
            return rows_at_once
        found = read_object(path)
        check_same_run(self.folder, found["run"], run, "tuning")
        return int(found["rows_at_once"])

    def checkpoint(self) -> Path | None:
        """The last checkpoint that was written whole; None where there is none."""
        found = [path for path in self.folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
        for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
            with contextlib.suppress(BrokenCheckpointError, OSError):
                read_object(path / "trainer_state.json")  # written last
                return path
        return None

    @property
    def worth_keeping(self) -> bool:
        """Whether there is something to go on from."""
        kept = (self.folder / _TEXTS).is_file() or any(self.folder.glob("teacher-*.safetensors"))
        return self.kept and (kept or self.checkpoint() is not None)


@contextlib.contextmanager
def open_work(place: str | Path | None) -> Iterator[Work]:
    """Opens a folder of work for one run at a time, and makes it where it is not there.

    Args:
        place: The folder; None for one that is gone afterwards.

    Yields:
        The folder. What was not worth keeping is gone after an error; what is done, the caller clears away.

    Raises:
        FusionConfigError: Another run is at work in it, or it holds something else.
    """
    if place is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Work(Path(folder), kept=False)
        return
    work = Work(Path(place), kept=True)
    with claimed(work.folder, (_RUN, _TEXTS), "tuning", "another folder"):
        try:
            yield work
        except BaseException:
            if not work.worth_keeping:
                shutil.rmtree(work.folder, ignore_errors=True)
            raise


def fingerprint(model: PreTrainedModel) -> str:
    """A digest of some numbers of each tensor of a model: others have another.

    Args:
        model: The model.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.numel() and not tensor.is_meta:  # accelerate keeps it elsewhere
            flat = tensor.detach().flatten()
            some = flat[:: max(1, len(flat) // _SAMPLE)].cpu().contiguous()
            digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def digest_of(texts: Sequence[str]) -> str:
    """A digest of texts.

    Args:
        texts: The texts.
    """
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


class SaveNowAndThen(TrainerCallback):
    """Has a checkpoint written once a minute, whatever a step takes."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Starts the clock."""
        self.last = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Asks for a checkpoint, unless the end is here."""
        if time.monotonic() - self.last >= _SAVE_SECONDS and state.global_step < state.max_steps:
            control.should_save = True
        return control

    def on_save(self, *_: Any, **__: Any) -> None:
        """Starts the clock again."""
        self.last = time.monotonic()
