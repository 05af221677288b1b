"""METEOR by nltk, with the synonyms of WordNet or without."""

from __future__ import annotations

from typing import Any

from nltk.tokenize import wordpunct_tokenize
from nltk.translate.meteor_score import meteor_score

from .base import TextMetric
from .wordnet import read_wordnet

__all__ = ["Meteor", "MeteorExactStem"]


class _NoSynonyms:
    """A WordNet without a word in it."""

    def synsets(self, word: str) -> list[Any]:
        """Finds nothing."""
        return []


def _mean_meteor(predictions: list[str], references: list[list[str]], wordnet: Any) -> float:
    scores = [
        meteor_score([wordpunct_tokenize(text) for text in texts], wordpunct_tokenize(prediction), wordnet=wordnet)
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    return sum(scores) / len(scores)


class Meteor(TextMetric):
    """Mean METEOR of the rows, 0 to 1, as `meteor`: words match that are equal, of one stem, or synonyms.

    Of several references the best counts. Texts are lower-cased and cut into runs of letters and digits and runs of
    punctuation, which needs no download (evaluate's own cuts by Punkt, which does). WordNet 3.0 is read from Debian's
    package `wordnet-base`, or from the folder that `WNSEARCHDIR` names.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        read_wordnet()  # tells now, not after hours of generating, that there is none
        super().__init__(*args, **kwargs)

    def score(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        """Computes METEOR with synonyms."""
        return {"meteor": _mean_meteor(predictions, references, read_wordnet())}


class MeteorExactStem(TextMetric):
    """METEOR without synonyms, as `meteor_exact_stem`: it needs no WordNet. Else as `meteor`."""

    def score(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        """Computes METEOR without synonyms."""
        return {"meteor_exact_stem": _mean_meteor(predictions, references, _NoSynonyms())}
