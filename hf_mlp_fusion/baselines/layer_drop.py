"""Whole layers dropped: the one-shot start of DistilBERT and DistilRoBERTa (Sanh et al. 2019)."""

from __future__ import annotations

import copy
import re
from typing import Any

from transformers import PreTrainedModel

from ..errors import FusionConfigError, UnsupportedModelError
from ..fusion import check_reducible, plan_fusion
from ..modeling.building import rebuild
from ..modeling.find import find_ffns
from ..recipe import FusionConfig

__all__ = ["drop_layers", "kept_layers"]


def kept_layers(model: PreTrainedModel, config: FusionConfig) -> list[int]:
    """The layers that stay: of those that the recipe names every second one, the first among them, and all others.

    Args:
        model: A stock model.
        config: The recipe; its width does not matter.

    Returns:
        Numbers of layers, ascending.

    Raises:
        FusionConfigError: The recipe names one layer only.
        UnsupportedModelError: The model has several stacks, or layers that are not alike.
    """
    check_reducible(model)
    ffns = list(find_ffns(model))
    if len({ffn.stack for ffn in ffns}) > 1 or any(ffn.expert is not None for ffn in ffns):
        raise UnsupportedModelError(
            "layer_drop needs one stack of layers that are all alike: an encoder-decoder or a mixture of experts "
            "would become another architecture"
        )
    dropped = sorted({ffn.layer for ffn, _ in plan_fusion(model, config).widths})[1::2]
    if not dropped:
        raise FusionConfigError("layer_drop keeps every second layer of those named: name two or more")
    return sorted({ffn.layer for ffn in ffns} - set(dropped))


def drop_layers(model: PreTrainedModel, config: FusionConfig) -> Any:
    """Keeps every second layer of those that a recipe names.

    Args:
        model: A stock model of one stack of layers. It is untouched.
        config: Which layers to thin out.

    Returns:
        A model of the stock class with fewer layers, in the dtype, device and mode of `model`.

    Raises:
        FusionConfigError: The recipe names one layer only.
        UnsupportedModelError: The model has several stacks, or layers that are not alike.
    """
    kept = kept_layers(model, config)
    ffns = list(find_ffns(model))
    path = ffns[0].prefix + ffns[0].spec.layers_path(ffns[0].name)
    places = {old: new for new, old in enumerate(kept)}
    state = {}
    for name, tensor in model.state_dict().items():
        match = re.match(rf"{re.escape(path)}\.(\d+)\.", name)
        if match is None:
            state[name] = tensor.clone()
        elif int(match[1]) in places:
            state[f"{path}.{places[int(match[1])]}.{name[match.end() :]}"] = tensor.clone()
    smaller_config = copy.deepcopy(model.config)
    smaller_config.num_hidden_layers = len(kept)
    return rebuild(model, type(model), smaller_config, state)
