"""Another power of the cluster sizes apart, in a fused model as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from ..recipe import FusionSection
from ..tensors import Fusion
from .find import by_entry, find_ffns

__all__ = ["set_powers"]


@torch.no_grad()
def set_powers(model: PreTrainedModel, powers: float | Mapping[str, float]) -> dict[str, float]:
    """Keeps another power of the cluster sizes apart as P and puts the rest into the weights, in place.

    The model computes the same, up to rounding, and trains otherwise. An optimizer that knows its weights should be
    made anew.

    Args:
        model: A fused model.
        powers: The power, 0 to 1; or that of each FFN, by name of its entry in the config section.

    Returns:
        The powers before, by name of the entry.
    """
    before: dict[str, float] = {}
    for group in by_entry(ffn for ffn in find_ffns(model) if ffn.is_fused):
        holder = group[0].holder
        assert holder is not None
        entry = group[0].entry
        before[entry] = holder.power
        power = powers if isinstance(powers, int | float) else powers[entry]
        for ffn in group:
            weights = ffn.read()
            sizes = ffn.part_of(holder).cluster_sizes
            ffn.write(ffn.tensors(Fusion(weights, sizes, holder.power).at_power(power).weights))
        holder.power = power
    section = FusionSection.from_dict(model.config.mlp_fusion)
    ffns = {
        name: replace(ffn, power=powers if isinstance(powers, int | float) else powers[name])
        if name in before
        else ffn
        for name, ffn in section.ffns.items()
    }
    model.config.mlp_fusion = replace(section, ffns=ffns).to_dict()
    return before
