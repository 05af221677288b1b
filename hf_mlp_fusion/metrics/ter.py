"""TER by sacreBLEU."""

from __future__ import annotations

from sacrebleu.metrics.ter import TER

from .base import TextMetric, reference_streams

__all__ = ["Ter"]


class Ter(TextMetric):
    """Translation edit rate in percent of the references' words, as `ter`: lower is better, and it can exceed 100.

    With sacreBLEU's defaults: lower-cased, words parted by spaces. Of several references the nearest counts.
    Two thousand texts take most of a minute.
    """

    def score(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        """Computes the edits of all rows by the mean lengths of their references."""
        return {"ter": TER().corpus_score(predictions, reference_streams(references)).score}
