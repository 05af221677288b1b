"""`tune_model`: layer-wise tuning on texts, and what came of it on texts held out."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from ..data import (
    Batch,
    available_bytes,
    check_room,
    make_batches,
    plain_context,
    row_bytes,
    row_count,
    split_texts,
    tokenizer_of,
)
from ..errors import DataError, FusionWarning
from ..measure import OutputError, output_error, parameter_blocks, reduced_ffns
from .layerwise import DEFAULT_TARGET, LEARNING_RATE, LayerwiseTuningTrainer

__all__ = ["TuningResult", "tune_model"]

_HELD_OUT_ROWS = 128  # at most; an output error changes little beyond
_FEWEST_TEXTS = 8  # to be parted at all
_FEWEST_ROWS = 16  # below which it says little
_SHARES = (0.1, 0.2, 0.4)  # of the texts to hold out, the first that gives as many rows


@dataclass(frozen=True)
class TuningResult:
    """Output errors on rows of held-out texts.

    Args:
        before: Before tuning.
        after: After it.
        rows: Rows of tokens that it was measured on.
    """

    before: OutputError
    after: OutputError
    rows: int


@plain_context()
def tune_model(
    fused: Any,
    original: PreTrainedModel,
    texts: Sequence[str],
    tokenizer: Any = None,
    *,
    target: str = DEFAULT_TARGET,
    epochs: float = 1.0,
    learning_rate: float = LEARNING_RATE,
    batch_size: int = 16,
    max_length: int = 128,
    seed: int = 0,
) -> TuningResult:
    """Tunes a fused model on nine tenths of some texts, layer by layer, and measures on the others what it gained.

    Where a tenth of the texts would be too few rows to measure on, more are held out.

    Args:
        fused: The fused model, in float32. It is tuned in place where it is, and its receipt says so.
        original: The model that it was fused from. It is moved beside it.
        texts: Texts like those that the model will see; thousands, or one epoch is soon over.
        tokenizer: The tokenizer; if not given, the one that lies beside the fused model's weights.
        target: What to compare, as `LayerwiseTuningTrainer` has it.
        epochs: How often to go through the texts.
        learning_rate: AdamW's, at the start; it falls to zero linearly.
        batch_size: Rows of a step: a text each, or windows of text for language models. Where they do not fit into
            memory at once, a step takes them in turn.
        max_length: Tokens of a row, at most.
        seed: Seed of the order, and of what masked language models mask.

    Raises:
        DataError: There are too few texts.
        MemoryLimitError: Not one row fits into the memory there is.
        UnsupportedModelError: The models do not belong together.

    Warns:
        FusionWarning: The output error rose, or was measured on very few rows.

    Example:
        >>> from hf_mlp_fusion.training import tune_model
        >>> result = tune_model(fused, model, texts, tokenizer)  # doctest: +SKIP
        >>> result.before.mean, result.after.mean  # doctest: +SKIP
        (0.436, 0.336)
    """
    tokenizer = tokenizer or tokenizer_of(fused)
    train, batches = _parted(fused, texts, tokenizer, max_length, seed)
    rows = [
        {name: tensor[0] for name, tensor in row.items()}
        for row in make_batches(fused, tokenizer, train, max_length=max_length, batch_size=1, seed=seed)
    ]
    on_cpu = fused.device.type == "cpu"
    at_once = _rows_at_once(fused, original, batch_size, max_length)
    with tempfile.TemporaryDirectory() as folder:  # where `Trainer` would save
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=batch_size // at_once,
            seed=seed,
            use_cache=getattr(fused.config, "use_cache", False),
            use_cpu=on_cpu,
            dataloader_pin_memory=not on_cpu,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = LayerwiseTuningTrainer(
            fused, arguments, teacher=original, target=target, train_dataset=rows, data_collator=_padded
        )
        trainer.remove_callback(PrinterCallback)
        if transformers_logging.is_progress_bar_enabled():
            trainer.add_callback(_Progress)
        before = output_error(original, fused, batches)
        trainer.train()
    result = TuningResult(before, output_error(original, fused, batches), sum(map(row_count, batches)))
    if result.rows < _FEWEST_ROWS:
        warnings.warn(
            f"the output error was measured on {result.rows} rows, and says little: give more texts",
            FusionWarning,
            stacklevel=3,
        )
    if result.after.mean > before.mean:
        warnings.warn(
            f"tuning made the output error worse, from {before.mean:.3f} to {result.after.mean:.3f}: give more texts, "
            "or lower the learning rate; the model was better before",
            FusionWarning,
            stacklevel=3,
        )
    if fused.fusion_report is not None:
        *others, last = fused.fusion_report.tuning
        last = replace(last, error_before=before.mean, error_after=result.after.mean)
        fused.fusion_report = replace(fused.fusion_report, tuning=[*others, last])
    return result


def _parted(
    fused: Any, texts: Sequence[str], tokenizer: Any, max_length: int, seed: int
) -> tuple[list[str], list[Batch]]:
    """The texts to tune on, and batches of the others."""
    found: tuple[list[str], list[Batch]] | None = None
    for share in _SHARES:
        train, held_out = split_texts(texts, share)
        if not train or not held_out:
            continue
        found = (
            train,
            make_batches(fused, tokenizer, held_out, samples=_HELD_OUT_ROWS, max_length=max_length, seed=seed),
        )
        if sum(map(row_count, found[1])) >= _FEWEST_ROWS:
            break
    if found is None or len(texts) < _FEWEST_TEXTS:
        raise DataError(f"{len(texts)} texts are too few to tune on most and measure on the others: give more")
    return found


def _rows_at_once(fused: Any, original: PreTrainedModel, batch_size: int, tokens: int) -> int:
    """The most rows that fit into half of the memory there is and of which a step has a whole number of times."""
    needed = row_bytes(fused, tokens, gradients=True) + row_bytes(original, tokens)
    blocks = parameter_blocks(fused, reduced_ffns(fused))
    tuned = {name for names in blocks.values() for name in names}
    state = sum(3 * p.numel() * p.element_size() for name, p in fused.named_parameters() if name in tuned)
    check_room(state + needed, fused.device, "a step of tuning", "shorter rows need less")
    fitting = max(1, min(batch_size, (available_bytes(fused.device) - state) // 2 // needed))
    return next(rows for rows in range(fitting, 0, -1) if batch_size % rows == 0)


class _Progress(ProgressCallback):
    """The bar alone: `ProgressCallback` writes its logs to standard output."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Writes nothing."""


def _padded(rows: Sequence[dict[str, Tensor]]) -> Batch:
    """Rows of tokens as a batch; attention masks are padded with zeros, so with what tokens are does not matter."""
    return {
        name: pad_sequence(
            [row[name] for row in rows], batch_first=True, padding_value=-100 if name == "labels" else 0
        )
        for name in rows[0]
    }
