"""Peak memory of a forward or of a training step."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..data import Batch, evaluating, inputs_of, on_device
from .step import training_step

__all__ = ["peak_memory"]

_PROCESS = Path("/proc/self")


def peak_memory(model: PreTrainedModel, batch: Batch, *, training: bool = False) -> int | None:
    """Measures how far memory rises above the loaded model during one forward or training step.

    Args:
        model: The model; its weights are unchanged afterwards.
        batch: What to run it on.
        training: Measure a training step (forward, backward, AdamW with its state).

    Returns:
        Bytes above what was held before: of torch's allocator on a GPU, of the process (Linux only) on a CPU; None
        where the system does not tell.
    """
    batch = on_device(batch, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0) if training else None
    cuda = model.device.type == "cuda"
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
    else:
        # What was freed must be given back first: the step would use it again, and the process not grow.
        with contextlib.suppress(OSError, AttributeError):  # no glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        try:
            (_PROCESS / "clear_refs").write_text("5")  # resets the high-water mark: man 5 proc
        except OSError:
            return None
        before = _process_bytes("VmRSS")
    with evaluating(model), torch.set_grad_enabled(training):
        if training:
            training_step(model, batch, optimizer)
        else:
            model(**inputs_of(batch))
    peak = torch.cuda.max_memory_allocated(model.device) if cuda else _process_bytes("VmHWM")
    return max(0, peak - before)


def _process_bytes(field: str) -> int:
    lines = (_PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
