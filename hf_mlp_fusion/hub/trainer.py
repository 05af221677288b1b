"""Cards that survive Trainer, which writes its own README over whatever lies there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..recipe import REPORT_NAME
from .cards import write_card
from .stub import add_stub

__all__ = ["FusionCardMixin"]


class FusionCardMixin:
    """For a Trainer class that trains fused models: the part on fusion comes into each README that it writes.

    The stub comes beside it, so that what `Trainer.push_to_hub` pushes is as complete as what a model's own pushes.

    Example:
        >>> from transformers import Trainer
        >>> class FusedTrainer(FusionCardMixin, Trainer):
        ...     pass
    """

    args: Any
    hub_model_id: str | None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, with the part on fusion."""
        super().create_model_card(*args, **kwargs)  # type: ignore[misc]
        folder = Path(self.args.output_dir)
        # An adapter is saved without its model, and a card may be asked for before a model is saved.
        if self.is_world_process_zero() and (folder / REPORT_NAME).is_file():  # type: ignore[attr-defined]
            add_stub(folder)
            write_card(folder, name=self.hub_model_id, ask=False)
