"""What tuning gained, measured on texts that it did not see."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ..data import LANGUAGE_OBJECTIVES, Batch, make_batches, objective_of, on_device, row_count, split_texts
from ..errors import DataError, FusionWarning
from ..measure import LogitDivergence, OutputError, divergence, language_loss, output_error

__all__ = ["HeldOut", "Standing", "TuningResult", "hold_out", "warn_of"]

_HELD_OUT_ROWS = 128  # at most; an output error changes little beyond
_HELD_OUT_TOKENS = 2**15  # at most, where rows are long
_FEWEST_TEXTS = 8  # to be parted at all
_FEWEST_ROWS = 16  # below which it says little
_SHARES = (0.1, 0.2, 0.4)  # of the texts to hold out, the first that gives as many rows


@dataclass(frozen=True)
class Standing:
    """Where a fused model stands on rows of held-out texts.

    Args:
        error: Output errors.
        divergence: KL(original ‖ fused) of an item, in nats; None where logits are not compared.
        loss: Loss of the language model, in nats a token; None where there is none, or logits are not compared.
    """

    error: OutputError
    divergence: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class TuningResult:
    """What tuning gained on rows of held-out texts.

    Args:
        before: Output errors before tuning.
        after: After it.
        rows: Rows of tokens that it was measured on.
        divergence: KL(original ‖ fused) of an item before and after, in nats, where logits were compared.
        losses: Losses of the language model, in nats a token: the original's, the fused one's before and after, where
            logits were compared. Their exponentials are perplexities.
    """

    before: OutputError
    after: OutputError
    rows: int
    divergence: tuple[float, float] | None = None
    losses: tuple[float, float, float] | None = None


class HeldOut:
    """Rows of held-out texts, and what two models make of them.

    Args:
        original: The original.
        fused: The fused model.
        batches: The rows, in batches.
        logits: Whether logits are compared.
    """

    def __init__(self, original: PreTrainedModel, fused: PreTrainedModel, batches: list[Batch], logits: bool) -> None:
        self.original, self.fused, self.batches, self.logits = original, fused, batches, logits
        self.rows = sum(map(row_count, batches))
        self.language = logits and objective_of(original) in LANGUAGE_OBJECTIVES

    @property
    def whole_logits(self) -> bool:
        """Whether a step makes the logits of all tokens at once."""
        if not self.logits:
            return False
        return not LogitDivergence(self.original, self.fused).in_pieces(on_device(self.batches[0], self.original))

    def standing(self) -> Standing:
        """Where the fused model stands now."""
        error = output_error(self.original, self.fused, self.batches)
        if not self.logits:
            return Standing(error)
        apart = divergence(self.original, self.fused, self.batches).mean
        return Standing(error, apart, language_loss(self.fused, self.batches).loss if self.language else None)

    def result(self, before: Standing, after: Standing) -> TuningResult:
        """What became of the fused model.

        Args:
            before: Where it stood.
            after: Where it stands.
        """
        apart = losses = None
        if before.divergence is not None and after.divergence is not None:
            apart = (before.divergence, after.divergence)
        if before.loss is not None and after.loss is not None:
            losses = (language_loss(self.original, self.batches).loss, before.loss, after.loss)
        return TuningResult(before.error, after.error, self.rows, apart, losses)


def hold_out(
    fused: Any, texts: Sequence[str], tokenizer: Any, max_length: int, seed: int
) -> tuple[list[str], list[Batch]]:
    """Parts texts into those to tune on, and batches of the others.

    Where a tenth of the texts would be too few rows to measure on, more are held out.

    Args:
        fused: The fused model.
        texts: The texts.
        tokenizer: The tokenizer.
        max_length: Tokens of a row, at most.
        seed: Seed of what is masked.

    Raises:
        DataError: There are too few texts.
    """
    found: tuple[list[str], list[Batch]] | None = None
    samples = min(_HELD_OUT_ROWS, max(_FEWEST_ROWS, _HELD_OUT_TOKENS // max_length))
    for share in _SHARES:
        train, held_out = split_texts(texts, share)
        if not train or not held_out:
            continue
        found = (train, make_batches(fused, tokenizer, held_out, samples=samples, max_length=max_length, seed=seed))
        if sum(map(row_count, found[1])) >= _FEWEST_ROWS:
            break
    if found is None or len(texts) < _FEWEST_TEXTS:
        raise DataError(f"{len(texts)} texts are too few to tune on most and measure on the others: give more")
    return found


def warn_of(result: TuningResult, stacklevel: int) -> None:
    """Warns where tuning made worse what it was to mend, and where that was measured on very few rows.

    Args:
        result: What became of the model.
        stacklevel: As in `warnings.warn`, of the caller.

    Warns:
        FusionWarning: It did, or was.
    """
    if result.rows < _FEWEST_ROWS:
        warnings.warn(
            f"the gain was measured on {result.rows} rows, and says little: give more texts",
            FusionWarning,
            stacklevel=stacklevel + 1,
        )
    what, (before, after) = "output error", (result.before.mean, result.after.mean)
    if result.divergence is not None:
        what, (before, after) = "divergence from the original", result.divergence
    if after > before:
        warnings.warn(
            f"tuning made the {what} worse, from {before:.3f} to {after:.3f}: give more texts, or lower the learning "
            "rate; the model was better before",
            FusionWarning,
            stacklevel=stacklevel + 1,
        )
