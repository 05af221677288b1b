"""The target `"logits"`: what a fused model predicts is to be what the original predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..data import Batch
from ..measure import LogitDivergence
from .teacher import seen_by
from .teacher_cache import TEACHER_IDS, TEACHER_VALUES

__all__ = ["LogitLoss"]


class LogitLoss:
    """The mean KL divergence of a fused model's predictions from its teacher's, KL(teacher ‖ fused).

    Of language models and taggers it is that of each token, of classifiers that of each row, of question answering
    that of start and end; of regression it is the squared error. Padding does not count.

    Args:
        fused: The fused model.
        teacher: The original.

    Raises:
        UnsupportedModelError: The two have not the same head.
    """

    def __init__(self, fused: PreTrainedModel, teacher: PreTrainedModel) -> None:
        self.teacher = teacher
        self.divergence = LogitDivergence(teacher, fused)

    def __call__(self, run: Callable[..., Any], batch: Batch) -> Tensor:
        """The loss of a batch.

        Args:
            run: The fused model, or what wraps it.
            batch: The arguments of its forward.
        """
        if TEACHER_IDS in batch:  # the teacher has spoken before
            ids, values = batch.pop(TEACHER_IDS), batch.pop(TEACHER_VALUES)
            self.divergence.in_pieces(seen_by(self.teacher, batch))
            total, items = self.divergence.sums_of_top(run, batch, ids, values)
        else:
            total, items = self.divergence.sums(run, batch, seen_by(self.teacher, batch))
        return total / max(1, items)
