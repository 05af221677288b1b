"""What fusion does to the FFNs of each layer, with calibration data or without."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor
from transformers import PreTrainedModel

from ..data import Progress, spare_bytes
from ..modeling.ffn import FFN
from ..recipe import FusionConfig
from ..tensors import (
    RIDGE,
    Fusion,
    Moments,
    assign_units,
    eliminate,
    inertia,
    ridge_refit,
    select_units,
)
from .clustered import at_once, cluster, cluster_all
from .courses import Course, fewest_units, share_out
from .driver import reduction_work
from .receipts import ReducedFFN
from .sources import MomentSource

__all__ = ["LayerFuser", "moment_bytes"]

logger = logging.getLogger(__name__)


# Second moments held at once. Layers whose moments fit are calibrated in one pass through the model.
_MOMENT_BYTES = 2**31

# Matrices of FFNs whose units are chosen together, which on a GPU takes little longer than for one alone.
_ELIMINATION_BYTES = 2**30


def moment_bytes(ffn: FFN, units: int) -> int:
    """Bytes of the moments of an FFN.

    Args:
        ffn: The FFN.
        units: Units that they are of.
    """
    return 8 * units * (units + ffn.output_size)


class LayerFuser:
    """Fuses the FFNs of a model, layer after layer, with calibration data or without.

    Args:
        model: The model. Between two calls, the FFNs of the last one are replaced by what it returned.
        todo: All FFNs to fuse, each with the units to keep.
        config: The recipe, its `selection` and `refit` resolved.
        source: What the moments come from, where the recipe refits.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        todo: Sequence[tuple[FFN, int]],
        config: FusionConfig,
        source: MomentSource | None,
    ) -> None:
        self.model = model
        self.todo = list(todo)
        self.config = config
        self.source = source
        self._ready: dict[str, ReducedFFN[Fusion]] = {}
        self._plain: dict[str, ReducedFFN[Fusion]] = {}
        self._moments: dict[str, Moments | None] = {}
        self._courses: dict[str, Course] = {}
        self._metrics: dict[str, Tensor] = {}
        if self._by_loss and source is not None and not source.settled:  # those are read when they are needed
            self._metrics = dict(source.metrics(model, [ffn for ffn, _ in todo], config.seed))
        self._widths = {ffn.name: width for ffn, width in todo}
        self._fewest = {ffn.name: fewest_units(ffn, config) for ffn, _ in todo}
        if config.auto_share is not None and source is not None:
            self._search_widths(config.auto_share, source)

    @property
    def widths(self) -> dict[str, int]:
        """The units that each FFN keeps, by name: those of `todo`, or what the recipe's share became."""
        return self._widths

    def __call__(self, group: Sequence[tuple[FFN, int]]) -> dict[str, ReducedFFN[Fusion]]:
        """Fuses the FFNs of one layer: one, or the experts of a mixture. The model is not changed.

        Args:
            group: The next FFNs of `todo`.

        Returns:
            The fused FFNs by name.
        """
        if self.source is None:
            self._cluster(group)
        else:
            for ffn, _ in group:
                if ffn.name not in self._ready:
                    self._refit(ffn, self.source)
        made = {ffn.name: self._ready.pop(ffn.name) for ffn, _ in group}
        power = self.config.power
        assert not isinstance(power, str), "the recipe is resolved"
        return {name: replace(item, weights=item.weights.at_power(power)) for name, item in made.items()}

    def _cluster(self, group: Sequence[tuple[FFN, int]]) -> None:
        """Fuses FFNs without data, and some that come next, where that takes no longer."""
        missing = [ffn for ffn, _ in group if ffn.name not in self._ready]
        if missing:
            start = [ffn.name for ffn, _ in self.todo].index(missing[0].name)
            count = max(len(missing), at_once(missing[0]))
            self._ready |= cluster_all(self.todo[start : start + count], self.config)

    def _refit(self, first: FFN, source: MomentSource) -> None:
        """Fuses an FFN with data, and those whose moments are held with its own."""
        if first.name not in self._moments:
            self._collect(first, source)
        chunk = [ffn for ffn, _ in self.todo if ffn.name in self._moments]
        if not self._clusters:
            self._spare_rare(chunk, source)
            self._eliminate(chunk, self._widths, source)
        self._ready |= {ffn.name: self._fuse(ffn, self._widths[ffn.name]) for ffn in chunk}
        self._tell_errors(chunk, source)

    def _spare_rare(self, ffns: Sequence[FFN], source: MomentSource) -> None:
        """Fuses experts that saw too few tokens to choose units by as without data, and takes the moments of that."""
        seen = {ffn: moments for ffn in ffns if (moments := self._moments[ffn.name]) is not None}
        rare = [ffn for ffn, moments in seen.items() if is_rare(moments.count, self._widths[ffn.name])]
        if not rare:
            return
        plain = cluster_all([(ffn, self._widths[ffn.name]) for ffn in rare], self.config)
        units = {name: item.weights.weights for name, item in plain.items()}
        self._plain |= plain
        found = source.moments(self.model, rare, units)
        self._moments |= {ffn.name: found.get(ffn.name) for ffn in rare}

    def _tell_errors(self, ffns: Sequence[FFN], source: MomentSource) -> None:
        """Takes the errors of FFNs on data that they were not calibrated on."""
        units = {ffn.name: self._ready[ffn.name].weights.weights for ffn in ffns}
        for name, moments in source.held_out(self.model, ffns, units).items():
            item = self._ready[name]
            weights = item.weights.weights
            down = weights.down.double().cpu() * item.weights.cluster_sizes.cpu()
            error = moments.on("cpu").error(down, weights.down_bias)
            self._ready[name] = replace(item, calibration_error=error if item.tokens else None)

    def _search_widths(self, share: float, source: MomentSource) -> None:
        """Gives each FFN the width that the course of its elimination asks for."""
        ffns = [ffn for ffn, _ in self.todo]
        with Progress(len(ffns), "widths", work=reduction_work(self.todo)) as progress:
            for ffn in ffns:
                if ffn.name not in self._courses and ffn.name not in self._moments:
                    self._know([ffn], self._fewest, source)
                    if ffn.name not in self._courses:
                        self._collect(ffn, source)
                        self._eliminate([ffn for ffn in ffns if ffn.name in self._moments], self._fewest, source)
                progress.update()
        self._widths = share_out(ffns, self._courses, round(share * sum(ffn.width for ffn in ffns)), self.config)
        if len(self._moments) < len(self.todo):  # of the last layers alone: what comes first needs its own again
            self._moments = {}
            if not source.settled:
                self._courses = {}

    def _eliminate(self, ffns: Sequence[FFN], widths: Mapping[str, int], source: MomentSource) -> None:
        """Drops the units of FFNs one by one, those of one width together; of those where that is not done yet."""
        self._know(ffns, widths, source)
        todo = [ffn for ffn in ffns if ffn.name not in self._courses and ffn.name not in self._plain]
        seen = {ffn: moments for ffn in todo if (moments := self._moments[ffn.name]) is not None}
        for width in sorted({moments.width for moments in seen.values()}):
            alike = [ffn for ffn, moments in seen.items() if moments.width == width]
            size = max(1, _ELIMINATION_BYTES // (16 * width**2))
            for some in (alike[start : start + size] for start in range(0, len(alike), size)):
                narrowest = min(widths[ffn.name] for ffn in some)
                metrics = self._metrics
                if source.settled:  # the course is kept, and of use for other widths
                    narrowest = min(narrowest, *(self._fewest[ffn.name] for ffn in some))
                    metrics = dict(source.metrics(self.model, some, self.config.seed)) if self._by_loss else {}
                factors = [metrics.get(ffn.name) for ffn in some]
                found = eliminate([seen[ffn] for ffn in some], narrowest, metrics=factors)
                for ffn, elimination in zip(some, found, strict=True):
                    self._courses[ffn.name] = Course(seen[ffn].count, elimination)
                    source.keep_course(ffn, self.config.metric, self._courses[ffn.name])

    def _know(self, ffns: Sequence[FFN], widths: Mapping[str, int], source: MomentSource) -> None:
        """Takes the courses that are known already and go down to some widths."""
        for ffn in ffns:
            if ffn.name not in self._courses:
                course = source.course(self.model, ffn, self.config.metric)
                if course is not None and course.fewest <= widths[ffn.name]:
                    self._courses[ffn.name] = course

    def _collect(self, first: FFN, source: MomentSource) -> None:
        """Takes the moments of as many FFNs, from this one on, as may be held at once; of a layer all, by a pass."""
        names = [ffn.name for ffn, _ in self.todo]
        coming = self.todo[names.index(first.name) :]
        chunk: list[tuple[FFN, int]] = []
        size, room = 0, min(_MOMENT_BYTES, spare_bytes(self.model.device))
        for _, layer in itertools.groupby(coming, key=lambda item: source.pass_of(item[0])):
            ffns = list(layer)
            size += sum(moment_bytes(ffn, width if self._clusters else ffn.width) for ffn, width in ffns)
            if chunk and size > room:
                break
            chunk += ffns
        units = None
        if self._clusters:
            self._plain = cluster_all(chunk, self.config)
            units = {name: item.weights.weights for name, item in self._plain.items()}
        found = source.moments(self.model, [ffn for ffn, _ in chunk], units)
        self._moments = {ffn.name: found.get(ffn.name) for ffn, _ in chunk}

    @property
    def _by_loss(self) -> bool:
        return self.config.metric == "loss"

    @property
    def _clusters(self) -> bool:
        return self.config.selection == "clusters"

    def _fuse(self, ffn: FFN, width: int) -> ReducedFFN[Fusion]:
        moments = self._moments.pop(ffn.name, None)
        plain = self._plain.pop(ffn.name, None)
        if moments is None:
            logger.warning("%s saw no calibration token: it is fused without", ffn.name)
            return plain or cluster(ffn, width, self.config)
        if plain is not None:
            return _refitted(plain, moments, self.config)
        kept = self._courses.pop(ffn.name).elimination.kept(width)
        labels = assign_units(moments, kept)
        weights = ffn.read()
        chosen = select_units(weights, kept.cpu().numpy(), labels)
        return _refitted(
            ReducedFFN(chosen, inertia(weights.features(), labels), "obs"), moments.of_units(kept), self.config
        )


def is_rare(tokens: int, width: int) -> bool:
    """Whether an FFN (an expert, that is) saw too few tokens to choose its units by: less than one for two it keeps.

    With more, units chosen by what they saw are better than clusters, though the refit of both shrinks to what it was.

    Args:
        tokens: The tokens.
        width: Units to keep.
    """
    return 2 * tokens < width


def _refitted(item: ReducedFFN[Fusion], moments: Moments, config: FusionConfig) -> ReducedFFN[Fusion]:
    """Refits the down projection on the moments of the fused units, shrunk to what it was."""
    fused, sizes = item.weights.weights, item.weights.cluster_sizes.double()
    prior = fused.down.double().cpu() * sizes
    moments = moments.on("cpu")
    if config.refit == "output":
        # The fewer tokens a unit has, the nearer its weights stay to what they were.
        weight, bias = ridge_refit(moments, prior, ridge=max(RIDGE, 0.1 * moments.width / moments.count))
    else:
        weight, bias = prior, moments.y_mean - prior @ moments.h_mean
    refitted = fused.with_down(weight / sizes, bias)
    return ReducedFFN(
        Fusion(refitted, item.weights.cluster_sizes),
        item.inertia_share,
        f"{item.method}+{config.refit}",
        moments.count,
    )
