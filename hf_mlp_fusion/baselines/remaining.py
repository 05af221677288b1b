"""What is left of the FFNs that a recipe names, where a method has dropped layers or experts."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..fusion import plan_fusion
from ..modeling.find import find_ffns
from ..recipe import FusionConfig
from .layer_drop import kept_layers

__all__ = ["remaining_ffns"]


def remaining_ffns(model: PreTrainedModel, smaller: PreTrainedModel, config: FusionConfig) -> list[str]:
    """Names, in a smaller stock model, of the FFNs that stay of those that a recipe names.

    Args:
        model: The stock model.
        smaller: The same with layers dropped, or experts.
        config: The recipe.
    """
    named = {ffn.layer for ffn, _ in plan_fusion(model, config).widths}
    stacked = {ffn.entry for ffn in find_ffns(model) if ffn.spec.stacked}
    if stacked:  # of which no layers are dropped
        return [ffn.name for ffn in find_ffns(smaller) if ffn.entry in stacked and ffn.layer in named]
    kept = kept_layers(model, config)
    return [ffn.name for ffn in find_ffns(smaller) if kept[ffn.layer] in named]
