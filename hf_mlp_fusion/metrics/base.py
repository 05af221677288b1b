"""What the metrics share: their configurations, and what they refuse to score."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import datasets
import evaluate

from ..errors import DataError, FusionConfigError

__all__ = ["LocalMetric", "TextMetric", "reference_streams"]


class LocalMetric(evaluate.Metric):
    """An `evaluate.Metric` whose code is here. A metric gives its `features` and its `score`."""

    configs: ClassVar[tuple[str, ...]] = ("default",)
    """The names that `config_name` can have."""

    def features_of_rows(self) -> datasets.Features:
        """The types of `predictions` and `references`."""
        raise NotImplementedError

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Computes the scores of one or more rows."""
        raise NotImplementedError

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in self.configs:
            raise FusionConfigError(
                f"the metric has no configuration {self.config_name!r}; it has {', '.join(self.configs)}"
            )
        return evaluate.MetricInfo(description=type(self).__doc__, citation="", features=self.features_of_rows())

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> Any:
        """Scores the rows given here, together with those added before."""
        if predictions is None and references is None and self.writer is None:
            raise DataError("there is nothing to score: give predictions and references, or add_batch them before")
        return super().compute(predictions=predictions, references=references, **kwargs)

    def _compute(self, *, predictions: Any, references: Any) -> dict[str, float]:
        if len(predictions) == 0:
            raise DataError("there is nothing to score: predictions and references are empty")
        return self.score(predictions, references)


class TextMetric(LocalMetric):
    """A metric of texts with one or more references each, as many as there are: `[["a", "b"], ["c"], ...]`."""

    def features_of_rows(self) -> datasets.Features:
        """A text, and a list of texts."""
        text = datasets.Value("string")
        return datasets.Features({"predictions": text, "references": datasets.List(text)})

    def _compute(self, *, predictions: Any, references: Any) -> dict[str, float]:
        for index, (prediction, texts) in enumerate(zip(predictions, references, strict=True)):
            if prediction is None or not texts or None in texts:
                raise DataError(f"row {index} needs a prediction and one or more references, none of them None")
        return super()._compute(predictions=predictions, references=references)


def reference_streams(references: list[list[str]]) -> list[list[Any]]:
    """Turns references by row into sacreBLEU's streams, one a reference, each with an entry for every row.

    A row with fewer references than others gets None, which sacreBLEU leaves out. An empty text in its place would
    count as a reference of no words, and halve the mean length that TER divides by.
    """
    return [list(stream) for stream in itertools.zip_longest(*references)]
