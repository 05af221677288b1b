"""What fusion does to the FFNs of each layer, with calibration data or without."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data import spare_bytes
from ..modeling.ffn import FFN
from ..modeling.find import by_entry
from ..recipe import FusionConfig
from ..tensors import (
    RIDGE,
    Elimination,
    Fusion,
    Moments,
    allocate_widths,
    assign_units,
    eliminate,
    inertia,
    ridge_refit,
    select_units,
)
from .clustered import at_once, cluster, cluster_all
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
        self._eliminations: dict[str, Elimination] = {}
        self._metrics: dict[str, Tensor] = {}
        if config.metric == "loss" and source is not None:
            self._metrics = dict(source.metrics(model, [ffn for ffn, _ in todo], config.seed))
        self._widths = {ffn.name: width for ffn, width in todo}
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
            self._eliminate(chunk, self._widths)
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
        """Gives each FFN the width that its error curve asks for; the errors add up over tokens and FFNs."""
        groups = by_entry(ffn for ffn, _ in self.todo)  # the experts of a stack get one width
        step = self.config.multiple_of
        narrowest = {ffn.name: min(step, ffn.width) for ffn, _ in self.todo}
        counts: dict[str, int] = {}
        for ffn, _ in self.todo:
            if ffn.name not in counts:
                if ffn.name not in self._moments:
                    self._collect(ffn, source)
                self._eliminate([ffn for ffn, _ in self.todo if ffn.name in self._moments], narrowest)
                counts |= {name: 0 if item is None else item.count for name, item in self._moments.items()}
        rises = []
        for group in groups:
            drops = group[0].width - narrowest[group[0].name]
            rise = torch.zeros(drops + 1, dtype=torch.float64)
            for ffn in group:
                if ffn.name in self._eliminations:
                    rise += counts[ffn.name] * self._eliminations[ffn.name].rise.cpu()
            rises.append(rise)
        full, sizes = [group[0].width for group in groups], [len(group) for group in groups]
        budget = round(share * sum(ffn.width for ffn, _ in self.todo))
        found = allocate_widths(rises, full, budget, step, sizes)
        self._widths = {ffn.name: width for group, width in zip(groups, found, strict=True) for ffn in group}
        if len(self._moments) < len(self.todo):  # of the last layers alone: what comes first needs its own again
            self._moments, self._eliminations = {}, {}

    def _eliminate(self, ffns: Sequence[FFN], widths: Mapping[str, int]) -> None:
        """Drops the units of FFNs one by one, those of one width together; of those where that is not done yet."""
        todo = [ffn for ffn in ffns if ffn.name not in self._eliminations and ffn.name not in self._plain]
        seen = {ffn.name: moments for ffn in todo if (moments := self._moments[ffn.name]) is not None}
        for width in sorted({moments.width for moments in seen.values()}):
            names = [name for name, moments in seen.items() if moments.width == width]
            size = max(1, _ELIMINATION_BYTES // (16 * width**2))
            for some in (names[start : start + size] for start in range(0, len(names), size)):
                narrowest = min(widths[name] for name in some)
                metrics = [self._metrics.get(name) for name in some]
                found = eliminate([seen[name] for name in some], narrowest, metrics=metrics)
                self._eliminations |= dict(zip(some, found, strict=True))

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
        kept = self._eliminations.pop(ffn.name).kept(width)
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
