"""P multiplied into the weights, and divided out again: for inference, where the training dynamics do not matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data import plain_context
from ..errors import FusionConfigError, UnsupportedModelError
from ..fusion import check_whole
from ..modeling.classes import FusedModelMixin
from ..modeling.ffn import FFN
from ..modeling.find import by_entry, find_ffns
from ..modeling.modules import ClusterScaling
from ..modeling.unit_scaling import UnitScaling
from ..recipe import FusionSection
from ..tensors import FFNWeights

__all__ = ["fold", "folded_weights", "unfold"]


@torch.no_grad()
@plain_context()
def fold(model: PreTrainedModel) -> None:
    """Multiplies P and the scales of the NTK calibration into the weights of a fused model, in place.

    y = W2 · (s2 P ⊙ σ(s1 (W1 x + b1))) + b2 becomes y = W2' · σ(W1' x + b1') + b2 with W2' = s2 W2 P, W1' = s1 W1 and
    b1' = s1 b1. The output stays, up to rounding, and costs one product less an FFN. The training dynamics do not
    stay: the folded form is for inference. Saved and loaded, a folded model stays folded; keep the one that is not.

    Args:
        model: A fused model. Its FFNs get the form `"narrow"`, in the config section too.

    Raises:
        UnsupportedModelError: It has no FFN with a P, or carries adapters, is quantized or offloaded.
        FusionConfigError: A product is too large for the dtype of the weights (float16 ends at 65,504); nothing has
            been changed.

    Example:
        >>> from hf_mlp_fusion import fold, unfold
        >>> fold(model)  # doctest: +SKIP
        >>> unfold(model)  # doctest: +SKIP
    """
    check_whole(model)
    ffns = [ffn for ffn in find_ffns(model) if ffn.is_fused]
    if not ffns or not isinstance(model, FusedModelMixin):
        raise UnsupportedModelError(f"{type(model).__name__} has no P to fold: it is not fused, or folded already")
    for ffn in ffns:
        folded_weights(ffn)  # raises before anything is changed
    for ffn in ffns:
        ffn.write(ffn.tensors(folded_weights(ffn)))
    scalings = {group[0].entry: group[0].take_scaling() for group in by_entry(ffns)}
    _set_form(model, scalings, "narrow")
    model.folded_scalings = scalings


@torch.no_grad()
@plain_context()
def unfold(model: PreTrainedModel) -> None:
    """Divides out again what `fold` has multiplied in, in place: the inverse of `fold`.

    P stands apart again, exactly. A weight comes back exactly where its factor is a power of two, else to the last
    bit but one: a product and a quotient are each rounded once, so it may be off by one unit in the last place.

    Args:
        model: A model that `fold` has folded, also when its weights have been trained or cast since.

    Raises:
        UnsupportedModelError: It is not folded, or was loaded from a folder (a folded model is saved without P), or
            carries adapters, is quantized or offloaded.
    """
    check_whole(model)
    scalings = getattr(model, "folded_scalings", None)
    if not scalings or not isinstance(model, FusedModelMixin):
        raise UnsupportedModelError(f"{type(model).__name__} was not folded here, so there is no P to unfold")
    ffns = [ffn for ffn in find_ffns(model) if ffn.entry in scalings]
    for ffn in ffns:
        scaling = scalings[ffn.entry].to(ffn.read().down.device)
        ffn.write(ffn.tensors(_rescaled(ffn.read(), ffn.part_of(scaling), torch.div)))
    for group in by_entry(ffns):
        group[0].put_scaling(scalings[group[0].entry])
    _set_form(model, scalings, "fused")
    model.folded_scalings = None


@torch.no_grad()
def folded_weights(ffn: FFN, dtype: torch.dtype | None = None) -> FFNWeights:
    """The weights with which an FFN computes the same without P; of one that has no P, its own.

    Args:
        ffn: A stock, fused or narrow FFN; it is not changed.
        dtype: Dtype of the products, that of the weights if not given.

    Raises:
        FusionConfigError: A product is too large for the dtype of the weights.
    """
    weights = ffn.read()
    scaling = ffn.scaling
    if scaling is None:
        return weights
    folded = _rescaled(weights, scaling, torch.mul, dtype)
    if not torch.isfinite(folded.features()).all():
        raise FusionConfigError(
            f"P times the weights of {ffn.name} is too large for {str(folded.down.dtype).removeprefix('torch.')}: "
            "take bfloat16 or float32"
        )
    return folded


def _rescaled(
    weights: FFNWeights,
    scaling: UnitScaling,
    operation: Callable[[Tensor, Tensor], Tensor],
    dtype: torch.dtype | None = None,
) -> FFNWeights:
    """Multiplies by the factors of a scaling, or divides; each weight is rounded once."""
    inner = torch.tensor(scaling.inner_scale, dtype=torch.float64)
    changed = {}
    for name, factor in {"down": scaling.factor, **dict.fromkeys(weights.seen, inner)}.items():
        part: Tensor = getattr(weights, name)
        wide = torch.promote_types(part.dtype, torch.float32)
        changed[name] = operation(part.to(wide), factor.to(wide).to(part.device)).to(dtype or part.dtype)
    return replace(weights, **changed)


def _set_form(model: PreTrainedModel, scalings: dict[str, ClusterScaling], form: str) -> None:
    """Says in the config section what form the FFNs have now."""
    section = FusionSection.from_dict(model.config.mlp_fusion)
    ffns = dict(section.ffns)
    for name, scaling in scalings.items():
        apart = form == "fused"
        kept, power = (scaling.kept_scales, scaling.power) if apart else (None, 1.0)
        ffns[name] = replace(ffns[name], form=form, scales=kept, power=power)
    model.config.mlp_fusion = replace(section, ffns=ffns).to_dict()
