"""What a caller's context changes, put aside while this package computes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

from ..errors import DataError, FusionError

__all__ = ["plain_context", "run_on"]


@contextlib.contextmanager
def plain_context() -> Iterator[None]:
    """Runs its body as if nobody had changed anything, and leaves random states as they were.

    Autocast would compute moments in half precision, weights that come into being in inference mode can never be
    trained, other default devices and dtypes hold other weights. Usable as a decorator.
    """
    accelerator = torch.accelerator.current_accelerator()
    kinds = {"cpu"} if accelerator is None else {"cpu", accelerator.type}
    # numpy's old generator is the one that `transformers.set_seed`, and so Trainer, sets.
    states = random.getstate(), np.random.get_state(), torch.get_default_dtype()  # noqa: NPY002
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in kinds:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
        stack.enter_context(torch.random.fork_rng(list(devices)))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            torch.set_default_dtype(states[2])


@contextlib.contextmanager
def run_on(name: str) -> Iterator[None]:
    """Says which of a user's data a model does not run on.

    Args:
        name: What it runs on, as "calibration batch 3".

    Raises:
        DataError: The model failed; memory that ran out is no fault of the data, and stays what it is.
    """
    try:
        yield
    except (FusionError, MemoryError, torch.OutOfMemoryError):
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        lines = str(error).strip().splitlines() or [""]
        raise DataError(f"the model does not run on {name}: {type(error).__name__}: {lines[0]:.200}") from error
