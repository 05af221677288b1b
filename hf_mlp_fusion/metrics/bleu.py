"""BLEU by sacreBLEU."""

from __future__ import annotations

from sacrebleu.metrics.bleu import BLEU

from .base import TextMetric, reference_streams

__all__ = ["Bleu"]


class Bleu(TextMetric):
    """Corpus BLEU, 0 to 100, as `bleu`: case kept, tokens of `13a`, exponential smoothing (sacreBLEU's defaults)."""

    def score(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        """Computes BLEU against all references of a row at once."""
        return {"bleu": BLEU().corpus_score(predictions, reference_streams(references)).score}
