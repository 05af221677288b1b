"""Rows of tokens and quiet training arguments for the tests of this folder."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments


def tuning_rows(model: PreTrainedModel, count: int = 32) -> list[dict[str, Tensor]]:
    """Rows of 10 token places, 3 to 9 of them filled; those of an encoder-decoder with labels of 6."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(count):
        filled = 3 + number % 7
        row = {"input_ids": torch.randint(2, 90, (10,), generator=generator)}
        row["attention_mask"] = (torch.arange(10) < filled).long()
        if model.config.is_encoder_decoder:
            labels = torch.randint(2, 90, (6,), generator=generator)
            row["labels"] = labels.masked_fill(torch.arange(6) >= filled - 2, -100)
        rows.append(row)
    return rows


def tuning_arguments(folder: object, **changes: object) -> TrainingArguments:
    """Arguments for a few steps on the CPU, saying nothing."""
    values = {
        "learning_rate": 2e-3,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    return TrainingArguments(str(folder), **(values | changes))
