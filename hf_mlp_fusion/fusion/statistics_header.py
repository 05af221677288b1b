"""What statistics are of: the model, and the data that it was calibrated on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..data import Batch

__all__ = ["FORMAT", "Header", "tensor_bytes", "token_hash"]

FORMAT = 1
"""Version of the format of statistics."""


@dataclass
class Header:
    """What the statistics of a model are of, in `statistics.json`.

    Args:
        source: The model: name_or_path, model_type, architecture, dtype.
        rows: Rows of calibration data, those held out too.
        tokens: Their tokens, without padding.
        sha256: Of what was calibrated on (`token_hash`).
        metric: `"loss"` where its metric was taken, else `"output"`.
        seed: Seed of the answers that the metric was taken on.
        ffns: The FFNs that are done.
        whole: Whether all are.
        format: Version of the format.
    """

    source: dict[str, Any]
    rows: int
    tokens: int
    sha256: str
    metric: str = "output"
    seed: int = 0
    ffns: list[str] = field(default_factory=list)
    whole: bool = False
    format: int = FORMAT

    def to_json(self) -> str:
        """Returns the fields as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


def token_hash(batches: Iterable[Batch]) -> str:
    """What identifies calibration data: a SHA-256 of all tensors of the batches, in order.

    Args:
        batches: The batches.
    """
    found = hashlib.sha256()
    for batch in batches:
        for name, tensor in sorted(batch.items()):
            found.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
            found.update(tensor_bytes(tensor))
    return found.hexdigest()


def tensor_bytes(tensor: Tensor) -> Any:
    """The bytes of a tensor, as hashes take them."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
