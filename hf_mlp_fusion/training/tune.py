"""`tune_model`: tuning on texts, and what came of it on texts held out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from ..data import Batch, available_bytes, check_room, make_batches, plain_context, row_bytes, tokenizer_of
from ..errors import check_choice
from ..fusion import SAMPLED
from ..recipe import TuningReport
from .held_out import HeldOut, TuningResult, hold_out, warn_of
from .sampled import sampled_texts
from .targets import DEFAULT_TARGET, TARGETS, learning_rate_for
from .teacher_cache import CachedRows, cache_predictions, check_cache
from .trained import TRAINED
from .trainer import TuningTrainer
from .work import SaveNowAndThen, digest_of, fingerprint, open_work

__all__ = ["tune_model"]

logger = logging.getLogger(__name__)


@plain_context()
def tune_model(
    fused: Any,
    original: PreTrainedModel,
    texts: Sequence[str] | str,
    tokenizer: Any = None,
    *,
    target: str = DEFAULT_TARGET,
    train: str = "ffns",
    epochs: float = 1.0,
    steps: int | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    cache_logits: int | None = None,
    work: str | Path | None = None,
) -> TuningResult:
    """Tunes a fused model on nine tenths of some texts, and measures on the others what it gained.

    Where a tenth of the texts would be too few rows to measure on, more are held out. On a GPU that can, logits are
    compared in bfloat16; the weights stay in float32.

    Args:
        fused: The fused model, in float32. It is tuned in place where it is, and its receipt says so.
        original: The model that it was fused from. It is moved beside it.
        texts: Texts like those that the model will see; thousands, or one epoch is soon over. Or `"sampled"`: what the
            original writes itself, if it is a causal or masked language model.
        tokenizer: The tokenizer; if not given, the one that lies beside the fused model's weights.
        target: What to compare, as `TuningTrainer` has it.
        train: What trains, as `TuningTrainer` has it.
        epochs: How often to go through the texts.
        steps: How many steps to take instead, through the texts as often as that needs.
        learning_rate: AdamW's; it falls to zero. If not given, 3e-4 layer by layer, 2e-4 on logits (behind a warm-up
            of a twentieth of the steps), of language models with P folded 6e-4.
        batch_size: Rows of a step: a text each, or windows of text for language models; 16 layer by layer, 8 on
            logits. Where they do not fit into memory at once, a step takes them in turn.
        max_length: Tokens of a row, at most; 128 layer by layer, 512 on logits.
        seed: Seed of the order, and of what masked language models mask.
        cache_logits: With the target `"logits"` of language models: that many of the original's likeliest tokens (64,
            say) are kept in files beforehand, with their probabilities, and the original waits in main memory while
            the fused model trains; all other tokens are taken together. For originals that do not fit beside it.
        work: A folder for checkpoints, one a minute, from which the same call goes on where it was stopped. It stays,
            to be deleted once the tuned model is saved. Without one, nothing is written.

    Raises:
        DataError: There are too few texts.
        FusionConfigError: There is no such target or choice of what trains, or `work` is another run's.
        MemoryLimitError: Not one row fits into the memory there is.
        UnsupportedModelError: The models do not belong together.

    Warns:
        FusionWarning: What was to be mended became worse, or was measured on very few rows.

    Example:
        >>> from hf_mlp_fusion.training import tune_model
        >>> result = tune_model(fused, model, texts, tokenizer)  # doctest: +SKIP
        >>> result.before.mean, result.after.mean  # doctest: +SKIP
        (0.436, 0.336)
    """
    check_choice("target", target, TARGETS)
    check_choice("train", train, TRAINED)
    if cache_logits is not None:
        check_cache(original, target, cache_logits)
    best = TARGETS[target]
    batch_size, max_length = batch_size or best.batch_size, max_length or best.max_length
    learning_rate = learning_rate_for(target, fused) if learning_rate is None else learning_rate
    tokenizer = tokenizer or tokenizer_of(fused)
    with open_work(work) as place:
        if texts == SAMPLED:
            tokens = steps and steps * batch_size * max_length
            texts = place.texts() or sampled_texts(original, tokenizer, tokens, seed)
            place.keep_texts(texts)
        tuned_on, batches = hold_out(fused, texts, tokenizer, max_length, seed)
        rows = [
            {name: tensor[0] for name, tensor in row.items()}
            for row in make_batches(fused, tokenizer, tuned_on, max_length=max_length, batch_size=1, seed=seed)
        ]
        held_out = HeldOut(original, fused, batches, target == "logits")
        longest = max(map(_length, rows))
        at_once = _rows_at_once(fused, original, batch_size, longest, train, logits=held_out.whole_logits)
        if place.kept:
            run = {"target": target, "train": train, "epochs": epochs, "steps": steps, "learning rate": learning_rate}
            run |= {"batch size": batch_size, "length of rows": max_length, "seed": seed, "texts": digest_of(texts)}
            run["cached logits"] = cache_logits
            run["weights"] = [fingerprint(fused), fingerprint(original)]
            at_once = place.begin(run, at_once)
        on_cpu = fused.device.type == "cpu"
        arguments = TrainingArguments(
            str(place.folder),
            num_train_epochs=epochs,
            max_steps=steps or -1,
            learning_rate=learning_rate,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=batch_size // at_once,
            seed=seed,
            bf16=best.half and not on_cpu and torch.cuda.is_bf16_supported(including_emulation=False),
            use_cache=getattr(fused.config, "use_cache", False),
            use_cpu=on_cpu,
            dataloader_pin_memory=not on_cpu,
            remove_unused_columns=cache_logits is None,
            save_strategy="no",
            save_total_limit=1,
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **best.arguments,
        )
        options: Any = {"target": target, "train": train, "train_dataset": rows, "data_collator": _padded}
        if cache_logits is not None:
            _speak_first(original, fused, rows, cache_logits, place.folder)
            options |= {"train_dataset": CachedRows(rows, place.folder), "teacher_device": "cpu"}
        trainer = TuningTrainer(fused, arguments, teacher=original, **options)
        trainer.remove_callback(PrinterCallback)
        if transformers_logging.is_progress_bar_enabled():
            trainer.add_callback(_Progress)
        if place.kept:
            trainer.add_callback(SaveNowAndThen)
        before = held_out.standing()
        checkpoint = place.checkpoint()
        if checkpoint is not None:
            logger.warning("going on from step %s, in %s", checkpoint.name.rpartition("-")[2], place.folder)
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        trainer.accelerator.unwrap_model(fused, keep_fp32_wrapper=False)  # or its forward would stay under autocast
    result = held_out.result(before, held_out.standing())
    warn_of(result, stacklevel=3)
    if fused.fusion_report is not None:
        *others, last = fused.fusion_report.tuning
        fused.fusion_report = replace(fused.fusion_report, tuning=[*others, _measured(last, result)])
    return result


def _speak_first(original: PreTrainedModel, fused: Any, rows: list[Batch], count: int, folder: Path) -> None:
    """Keeps what the original predicts of rows; each of the two models has the device for itself."""
    device = fused.device
    fused.to("cpu")
    original.to(device)
    cache_predictions(original, fused, rows, count, folder, _padded)
    original.to("cpu")  # type: ignore[arg-type]
    fused.to(device)


def _measured(done: TuningReport, result: TuningResult) -> TuningReport:
    """The entry of a receipt with what was measured."""
    apart = result.divergence or (None, None)
    losses = result.losses or (None, None, None)
    return replace(
        done,
        error_before=result.before.mean,
        error_after=result.after.mean,
        divergence_before=apart[0],
        divergence_after=apart[1],
        loss_original=losses[0],
        loss_before=losses[1],
        loss_after=losses[2],
    )


def _length(row: dict[str, Tensor]) -> int:
    return max(tensor.shape[-1] for tensor in row.values() if tensor.dim())


def _rows_at_once(
    fused: Any,
    original: PreTrainedModel,
    batch_size: int,
    tokens: int,
    train: str = "ffns",
    *,
    logits: bool = False,
) -> int:
    """The most rows that fit into half of the memory there is and of which a step has a whole number of times."""
    needed = row_bytes(fused, tokens, gradients=True, logits=logits) + row_bytes(original, tokens, logits=logits)
    tuned = TRAINED[train](fused)
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
