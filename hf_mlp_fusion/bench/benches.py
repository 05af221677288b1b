"""What a bench is, and the registry of them: a bench is one small file and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from .glue import GLUE_BENCH
from .train import History, Settings
from .webnlg import WEBNLG_BENCH

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["BENCHES", "Bench"]


class Bench(Protocol):
    """A family of tasks that models are fine-tuned on.

    Args:
        name: Its name.
        tasks: Its tasks.
        metrics: The metrics that tables show; of several tasks, one: `score`.
        task_type: What the Hub calls such tasks.
    """

    name: str
    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    task_type: str

    def split(self, task: str) -> str:
        """The split that is reported on."""

    def load_data(self, task: str, source: str, limit: int | None) -> Any:
        """Reads the data of a task, at most `limit` rows of each split.

        Raises:
            DataError: There are no such data.
        """

    def load_model(self, task: str, name: str, seed: int) -> tuple[PreTrainedModel, Any]:
        """Loads a model as the task needs it, a new head seeded, and its tokenizer."""

    def calibration(self, task: str, model: PreTrainedModel, tokenizer: Any, data: Any, settings: Settings) -> Any:
        """Calibration data from the task's training rows, as `fuse_model` takes them."""

    def run(
        self,
        task: str,
        model: PreTrainedModel,
        tokenizer: Any,
        data: Any,
        settings: Settings,
        seed: int,
        rate: float,
    ) -> History:
        """Fine-tunes the model in place; returns metrics, `score` among them, on the rows `fold` and `reported`."""


BENCHES: dict[str, Bench] = {bench.name: bench for bench in (GLUE_BENCH, WEBNLG_BENCH)}
"""The benches by name."""
