"""Metrics as `evaluate.Metric`, online and offline: `evaluate.load` fetches a script from the Hub, `load` does not.

May import `errors` alone. A metric is one small file and one line in `METRICS`. Nothing of `evaluate` is imported
before the first `load`.
"""

from __future__ import annotations

import importlib
import tempfile
from typing import TYPE_CHECKING

from ..errors import FusionConfigError

if TYPE_CHECKING:
    import evaluate

__all__ = ["METRICS", "load"]

METRICS = {
    "bleu": "bleu.Bleu",
    "glue": "glue.Glue",
    "meteor": "meteor.Meteor",
    "meteor_exact_stem": "meteor.MeteorExactStem",
    "ter": "ter.Ter",
}
"""Metrics by name: the module in this package and its class, which says what it computes."""


def load(name: str, config: str | None = None) -> evaluate.Metric:
    """Makes a metric, to be used like one of `evaluate.load`.

    It holds what it scores in memory, so it leaves no file behind, and any number of processes can score at once.

    Args:
        name: A key of `METRICS`.
        config: Configuration of the metric. `glue` needs the task: `"sst2"`, `"cola"`, `"mrpc"`, `"stsb"`, `"mnli"`,
            `"qnli"` and so on. The others have none.

    Returns:
        The metric: `compute(predictions=..., references=...)`, or `add_batch(...)` some times and then `compute()`.

    Raises:
        FusionConfigError: There is no such metric or configuration, or a package that it needs is not installed.
        DataError: `meteor` finds no WordNet.

    Example:
        >>> from hf_mlp_fusion.metrics import load
        >>> load("glue", "mrpc").compute(predictions=[0, 1, 1], references=[0, 1, 0])  # doctest: +SKIP
        {'accuracy': 0.6666666666666666, 'f1': 0.6666666666666666}
    """
    if name not in METRICS:
        raise FusionConfigError(f"there is no metric {name!r}; the metrics are {', '.join(METRICS)}")
    module, _, class_name = METRICS[name].partition(".")
    try:
        metric = getattr(importlib.import_module(f".{module}", __name__), class_name)
    except ModuleNotFoundError as error:
        raise FusionConfigError(
            f"the metric {name!r} needs {error.name}: run `pip install 'hf_mlp_fusion[bench]'`"
        ) from error
    # evaluate makes a folder for its cache files, which a metric in memory never writes.
    with tempfile.TemporaryDirectory() as folder:
        return metric(config, keep_in_memory=True, cache_dir=folder)
