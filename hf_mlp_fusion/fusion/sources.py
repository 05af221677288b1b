"""Where fusion has its moments from: rows that run through the model, or statistics that were taken before."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data import Batch
from ..errors import FusionConfigError
from ..modeling.ffn import FFN
from ..recipe import FusionConfig
from ..tensors import FFNWeights, Moments
from .calibration import collect_moments
from .courses import Course
from .loss_metric import loss_metrics
from .statistics import Statistics

__all__ = ["MomentSource", "RowSource", "StatisticsSource", "recipe_for"]

logger = logging.getLogger(__name__)


class MomentSource(Protocol):
    """What gives moments of the FFNs of a model."""

    @property
    def settled(self) -> bool:
        """Whether moments stay what they are when FFNs are replaced."""

    def pass_of(self, ffn: FFN) -> Hashable:
        """What FFNs have in common whose moments are best taken together."""

    def metrics(self, model: PreTrainedModel, ffns: Sequence[FFN], seed: int) -> Mapping[str, Tensor]:
        """Factors of the metric of the loss, as `loss_metrics` gives them."""

    def moments(
        self, model: PreTrainedModel, ffns: Sequence[FFN], units: Mapping[str, FFNWeights] | None = None
    ) -> Mapping[str, Moments]:
        """Moments of the FFNs that saw a token, as `collect_moments` gives them."""

    def held_out(
        self, model: PreTrainedModel, ffns: Sequence[FFN], units: Mapping[str, FFNWeights]
    ) -> Mapping[str, Moments]:
        """Moments on data that the others are not of; of no FFN where there are none."""

    def course(self, model: PreTrainedModel, ffn: FFN, metric: str) -> Course | None:
        """How the elimination of an FFN's units went, if that is known."""

    def keep_course(self, ffn: FFN, metric: str, course: Course) -> None:
        """Keeps how it went, where that is of use again."""


@dataclass(frozen=True)
class RowSource:
    """Rows that run through the model.

    Args:
        rows: Batches that are calibrated on.
        rest: Batches of the same kind, on which errors are told.
    """

    rows: Sequence[Batch]
    rest: Sequence[Batch] = ()
    settled = False

    def pass_of(self, ffn: FFN) -> Hashable:
        """The layer."""
        return ffn.stack, ffn.layer

    def metrics(self, model: PreTrainedModel, ffns: Sequence[FFN], seed: int) -> Mapping[str, Tensor]:
        """By a backward pass."""
        return loss_metrics(model, ffns, self.rows, seed)

    def moments(
        self, model: PreTrainedModel, ffns: Sequence[FFN], units: Mapping[str, FFNWeights] | None = None
    ) -> Mapping[str, Moments]:
        """By a pass through the model as it is now."""
        return collect_moments(model, ffns, self.rows, units)

    def held_out(
        self, model: PreTrainedModel, ffns: Sequence[FFN], units: Mapping[str, FFNWeights]
    ) -> Mapping[str, Moments]:
        """By a pass through the model as it is now."""
        return collect_moments(model, ffns, self.rest, units) if self.rest else {}

    def course(self, model: PreTrainedModel, ffn: FFN, metric: str) -> Course | None:
        """Never known: moments change with the model."""
        return None

    def keep_course(self, ffn: FFN, metric: str, course: Course) -> None:
        """Keeps nothing."""


@dataclass(frozen=True)
class StatisticsSource:
    """Statistics of the model before anything in it was fused.

    Args:
        statistics: The statistics.
        device: Where to compute; if not given, where the model is, if it is anywhere.
    """

    statistics: Statistics
    device: torch.device | None = None
    settled = True

    def pass_of(self, ffn: FFN) -> Hashable:
        """The FFN itself: each has a file."""
        return ffn.name

    def metrics(self, model: PreTrainedModel, ffns: Sequence[FFN], seed: int) -> Mapping[str, Tensor]:
        """Those in the files, whatever the seed."""
        found = {ffn.name: self.statistics.read_metric(ffn) for ffn in ffns}
        device = self._device(model)
        return {name: factor.to(device) for name, factor in found.items() if factor is not None}

    def moments(
        self, model: PreTrainedModel, ffns: Sequence[FFN], units: Mapping[str, FFNWeights] | None = None
    ) -> Mapping[str, Moments]:
        """Those in the files; of other units on the few tokens that an FFN saw."""
        found: dict[str, Moments] = {}
        for ffn in ffns:
            known = self.statistics.read(ffn)
            if units is None and known.moments is not None:
                found[ffn.name] = known.moments.on(self._device(model))
            elif units is not None and known.few is not None:
                found[ffn.name] = known.few.moments(ffn, units[ffn.name])
        return found

    def held_out(
        self, model: PreTrainedModel, ffns: Sequence[FFN], units: Mapping[str, FFNWeights]
    ) -> Mapping[str, Moments]:
        """On the tokens in the files."""
        samples = {ffn: self.statistics.read_held_out(ffn) for ffn in ffns}
        return {ffn.name: item.moments(ffn, units[ffn.name]) for ffn, item in samples.items() if item is not None}

    def course(self, model: PreTrainedModel, ffn: FFN, metric: str) -> Course | None:
        """That in the files."""
        known = self.statistics.read_course(ffn, metric)
        return None if known is None else known.on(self._device(model))

    def keep_course(self, ffn: FFN, metric: str, course: Course) -> None:
        """Writes it beside the moments, for other widths, and for other processes; where that may not be, nothing."""
        try:
            self.statistics.write_course(ffn, metric, course)
        except OSError as error:
            logger.info("%s cannot be written, so units are eliminated again: %s", self.statistics.folder, error)

    def _device(self, model: PreTrainedModel) -> torch.device:
        return self.device or (torch.device("cpu") if model.device.type == "meta" else model.device)


def recipe_for(config: FusionConfig, statistics: Statistics) -> FusionConfig:
    """A recipe with what statistics decide of it.

    Args:
        config: The recipe.
        statistics: What it is to be carried out on.

    Raises:
        FusionConfigError: It needs the rows themselves.
    """
    if config.ntk == "match":
        raise FusionConfigError("ntk='match' runs rows through the model, which statistics spare: write ntk='none'")
    if config.selection == "clusters":
        raise FusionConfigError(
            "selection='clusters' has no use for statistics, which are of the model's own units: write 'obs', or "
            "leave the statistics out"
        )
    if config.metric == "loss" and statistics.header.metric != "loss":
        raise FusionConfigError(
            f"{statistics.folder} has no metric of the loss: calibrate with --metric loss, or write metric='output'"
        )
    metric = "output" if statistics.header.metric == "output" else config.metric
    return replace(config, ntk="none", metric=metric)
