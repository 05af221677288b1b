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
    groups = list(by_entry(ffn for ffn in find_ffns(model) if ffn.is_fused))
    before = {group[0].entry: holder.power for group in groups if (holder := group[0].holder) is not None}
    wanted = dict.fromkeys(before, powers) if isinstance(powers, int | float) else powers
    for group in groups:
        holder = group[0].holder
        assert holder is not None
        power = wanted[group[0].entry]
        for ffn in group:
            fusion = Fusion(ffn.read(), ffn.part_of(holder).cluster_sizes, holder.power)
            ffn.write(ffn.tensors(fusion.at_power(power).weights))
        holder.power = power
    section = FusionSection.from_dict(model.config.mlp_fusion)
    ffns = section.ffns | {name: replace(section.ffns[name], power=wanted[name]) for name in before}
    model.config.mlp_fusion = replace(section, ffns=ffns).to_dict()
    return before
