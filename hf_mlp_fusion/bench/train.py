"""One fine-tuning run with transformers' Trainer, scored after every epoch."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["History", "Settings", "fine_tune"]

History = dict[str, list[dict[str, float]]]
"""By name of the rows, their metrics after each epoch."""


@dataclass(frozen=True)
class Settings:
    """How every run of a bench is trained: AdamW, the rate rising for 6 % of the steps and falling linearly to zero.

    Args:
        epochs: Passes over the training rows.
        batch_size: Rows a step.
        max_length: Tokens a row, at most.
        weight_decay: Weight decay.
        train_routers: Whether routers of a mixture of experts are trained. The paper freezes them.
    """

    epochs: int = 3
    batch_size: int = 32
    max_length: int = 128
    weight_decay: float = 0.01
    train_routers: bool = False


def fine_tune(
    model: PreTrainedModel,
    tokenizer: Any,
    train: Sequence[Mapping[str, Any]],
    evaluated: Mapping[str, Sequence[Mapping[str, Any]]],
    settings: Settings,
    seed: int,
    rate: float,
    *,
    collator: Any,
    compute_metrics: Callable[[Any], dict[str, float]] | None = None,
    logits_to_keep: Callable[[Any, Any], Any] | None = None,
    by_length: bool = False,
) -> History:
    """Fine-tunes a model in place.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        train: Rows to train on, as the model's forward takes them.
        evaluated: Rows to score after every epoch, by name.
        settings: How to train.
        seed: Seed of the order of the rows and of dropout.
        rate: Learning rate at its peak.
        collator: Makes batches of rows.
        compute_metrics: Makes metrics of predictions and labels; if not given, the loss is all.
        logits_to_keep: Takes logits and labels of a batch, and returns what is kept of the logits.
        by_length: Put rows of like length into a batch, which pads less.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from ..training import freeze_routers

    if not settings.train_routers:
        with contextlib.suppress(UnsupportedModelError):  # most models have none
            freeze_routers(model)
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                output_dir=folder,
                num_train_epochs=settings.epochs,
                per_device_train_batch_size=settings.batch_size,
                per_device_eval_batch_size=2 * settings.batch_size,
                learning_rate=rate,
                weight_decay=settings.weight_decay,
                warmup_steps=0.06,
                eval_strategy="epoch",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=seed,
                tf32=True if on_gpu else None,
                use_cpu=not on_gpu,
                dataloader_pin_memory=on_gpu,
                prediction_loss_only=compute_metrics is None,
                label_names=["labels"],
                train_sampling_strategy="group_by_length" if by_length else "random",
            ),
            train_dataset=train,
            eval_dataset=dict(evaluated),
            data_collator=collator,
            processing_class=tokenizer,
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=logits_to_keep,
        )
        trainer.remove_callback(PrinterCallback)  # the bars of the bench say how far it is
        trainer.train()
        history: History = {name: [] for name in evaluated}
        for entry in trainer.state.log_history:
            for name, entries in history.items():
                prefix = f"eval_{name}_"
                if prefix + "loss" in entry:
                    own = {key.removeprefix(prefix): value for key, value in entry.items() if key.startswith(prefix)}
                    entries.append({key: value for key, value in own.items() if not key.endswith(("second", "time"))})
    return history
