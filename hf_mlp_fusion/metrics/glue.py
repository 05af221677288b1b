"""The metrics of the GLUE tasks, with the names and values of evaluate's own `glue`."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from ..errors import DataError
from .base import LocalMetric

__all__ = ["Glue"]

Rows = npt.NDArray[Any]


def _constant(predictions: Rows, references: Rows) -> bool:
    return bool((predictions == predictions[0]).all() or (references == references[0]).all())


def _accuracy(predictions: Rows, references: Rows) -> dict[str, float]:
    return {"accuracy": float(accuracy_score(references, predictions))}


def _accuracy_f1(predictions: Rows, references: Rows) -> dict[str, float]:
    f1 = f1_score(references, predictions, zero_division=0.0)
    return {**_accuracy(predictions, references), "f1": float(f1)}


def _matthews(predictions: Rows, references: Rows) -> dict[str, float]:
    # scikit-learn gives constants 0 as well, but warns where both are the same.
    correlation = 0.0 if _constant(predictions, references) else matthews_corrcoef(references, predictions)
    return {"matthews_correlation": float(correlation)}


def _correlations(predictions: Rows, references: Rows) -> dict[str, float]:
    if not np.isfinite(predictions).all():
        return {"pearson": np.nan, "spearmanr": np.nan}
    if _constant(predictions, references):
        return {"pearson": 0.0, "spearmanr": 0.0}
    return {
        "pearson": float(pearsonr(predictions, references).statistic),
        "spearmanr": float(spearmanr(predictions, references).statistic),
    }


_SCORES = {
    "sst2": _accuracy,
    "cola": _matthews,
    "mrpc": _accuracy_f1,
    "qqp": _accuracy_f1,
    "stsb": _correlations,
    "mnli": _accuracy,
    "mnli_matched": _accuracy,
    "mnli_mismatched": _accuracy,
    "qnli": _accuracy,
    "rte": _accuracy,
    "wnli": _accuracy,
    "hans": _accuracy,
}


class Glue(LocalMetric):
    """Accuracy; with F1 of class 1 for `mrpc` and `qqp`; instead, correlations for `cola` and `stsb`.

    Matthews' correlation for `cola`, Pearson's and Spearman's for `stsb`. A correlation with a constant counts as 0,
    so that a model that learned nothing has a score (in evaluate's own, Matthews' is 0 and the others nan).
    Predictions that are nan or infinite correlate as nan.
    """

    configs = tuple(_SCORES)

    def features_of_rows(self) -> datasets.Features:
        """Class numbers; for `stsb` similarities, 0 to 5."""
        value = datasets.Value("float32" if self.config_name == "stsb" else "int64")
        return datasets.Features({"predictions": value, "references": value})

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Computes the scores of the task."""
        dtype = np.float64 if self.config_name == "stsb" else np.int64
        labels = np.array(references, dtype)
        if labels.min() < 0:
            raise DataError("some references are negative, as where GLUE hides the labels: score the validation split")
        return _SCORES[self.config_name](np.array(predictions, dtype), labels)
