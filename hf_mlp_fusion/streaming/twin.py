"""A model and its fused twin without weights, and where each of the twin's weights comes from."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from ..families import family_of
from ..fusion import build_smaller, ffn_width, source_of
from ..modeling.ffn import FFN
from ..modeling.find import find_ffns
from ..modeling.forms import FORMS
from ..modeling.modules import ClusterScaling
from ..recipe import FusionConfig, FusionSection
from .stored import StoredModel

__all__ = ["FORM", "fused_twin", "origins_of", "scales_of", "tie_as_stored"]

FORM = "fused"
"""The form of FFN that fusion makes."""


def tie_as_stored(stock: PreTrainedModel, stored: StoredModel) -> None:
    """Ties weights that the config ties and the checkpoint has twice, as loading does once it has seen them.

    Args:
        stock: The model, on the meta device.
        stored: Its checkpoint.

    Raises:
        UnsupportedModelError: The two differ.
    """
    for name, other in stock.all_tied_weights_keys.items():
        if not (stored.has(name) and stored.has(other)):
            continue
        pairs = zip(stored.pieces(name), stored.pieces(other), strict=True)
        if not all(torch.equal(*pair) for pair in pairs):
            raise UnsupportedModelError(
                f"{name} and {other} are one tensor by the config, and two in the checkpoint: set tie_word_embeddings "
                "to false in its config.json"
            )
    stock.tie_weights(recompute_mapping=False)


def fused_twin(stock: PreTrainedModel, widths: Sequence[tuple[FFN, int]], config: FusionConfig) -> PreTrainedModel:
    """The fused model that a stock one becomes, without weights as well.

    Args:
        stock: The model, on the meta device.
        widths: The FFNs to fuse, each with the units to keep.
        config: The recipe.
    """
    twin = copy.deepcopy(stock)
    own = {ffn.name: ffn for ffn in find_ffns(twin)}
    family = family_of(stock.config)
    power = config.power
    assert not isinstance(power, str), "the recipe is resolved"
    entries = {ffn.entry: ffn_width(ffn, width, family, FORM, power) for ffn, width in widths}
    first = {ffn.entry: own[ffn.name] for ffn, _ in reversed(widths)}  # one of a stack
    for entry, ffn in first.items():
        FORMS[FORM].install(ffn, entries[entry].width, entries[entry].original_width, power)
    fused: PreTrainedModel = build_smaller(twin, FusionSection(config, source_of(stock), entries), inplace=True)
    fused.tie_weights(recompute_mapping=False)  # loading compares what it ties, and here there is nothing to compare
    return fused


def scales_of(fused: PreTrainedModel) -> dict[str, Tensor]:
    """What stands beside P in a fused model's state dict, by name.

    Args:
        fused: The model, on the meta device.
    """
    holders = {name: module for name, module in fused.named_modules() if isinstance(module, ClusterScaling)}
    return {
        f"{name}.kernel_scales": torch.tensor(holder.every_scale)
        for name, holder in holders.items()
        if "kernel_scales" in holder._buffers
    }


def origins_of(
    fused: PreTrainedModel, saved: Iterable[str], stored: StoredModel, inputs: Iterable[str]
) -> dict[str, str]:
    """Where each tensor of a fused model that fusion leaves as it is comes from.

    Args:
        fused: The model, on the meta device.
        saved: Names of the tensors that are saved of it.
        stored: The checkpoint of the stock model.
        inputs: Names of the tensors of it that fusion needs.

    Returns:
        The name in the stock model by the name in the fused one.

    Raises:
        UnsupportedModelError: The checkpoint lacks one, and loading would make it up.
    """
    made = {*scales_of(fused)}
    for ffn in find_ffns(fused):
        if ffn.is_fused:
            made |= {f"{ffn.full_name}.{path}" for path in ffn.tensors(ffn.read())} | {ffn.scaling_name}
    ties: dict[int, list[str]] = {}
    for name, parameter in fused.named_parameters(remove_duplicate=False):
        ties.setdefault(id(parameter), []).append(name)
    others = {name: names for names in ties.values() for name in names}
    origins = {}
    lacking = [name for name in inputs if not stored.has(name)]
    for name in saved:
        if name in made:
            continue
        origin = next((item for item in [name, *others.get(name, ())] if stored.has(item)), None)
        if origin is None:
            lacking.append(name)
        else:
            origins[name] = origin
    if lacking:
        raise UnsupportedModelError(
            f"the checkpoint has no {lacking[0]!r}, which loading would make up: leave --stream out, or save the "
            "model anew with save_pretrained"
        )
    return origins
