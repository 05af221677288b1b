"""NTK calibration: two numbers a fused FFN that change no output and give its Adam kernels the original's size."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from ..data import Batch, plain_context
from ..errors import UnsupportedModelError
from ..measure import ntk
from ..modeling.ffn import FFN
from ..modeling.find import find_ffns
from ..modeling.rows import Rows
from ..recipe import FusionSection

__all__ = ["calibrate_ntk", "kernel_sizes", "match_kernel_sizes"]

logger = logging.getLogger(__name__)


@plain_context()
def calibrate_ntk(
    fused: PreTrainedModel, original: PreTrainedModel, batches: Iterable[Batch]
) -> dict[str, tuple[float, ...]]:
    """Sets the size of each fused FFN's Adam kernels to the original's, without changing what it computes.

    An Adam step moves a stored weight by the learning rate whatever its gradient's size. Storing W1 / s1 and W2 / s2,
    and computing with s1 and s2 times them, leaves the output as it is and multiplies the Adam kernel of W1 by s1 and
    that of W2 by s2. s1 and s2 are chosen so that both have the Frobenius norm that they have in the original. In a
    gated FFN, W1 is the gate, and the up projection V beside it has a number of its own: V / s3 is stored.

    Args:
        fused: A fused model; its weights, modules and config section are changed in place. It may have been
            calibrated before.
        original: The model that it was fused from, with the same head.
        batches: Batches of tokens; some 32 rows do. Language models need `labels`.

    Returns:
        (s1, s2) of each fused FFN by name, (s1, s2, s3) of a gated one.

    Raises:
        UnsupportedModelError: `fused` is not a fused model, or `original` is another model.

    Example:
        >>> from hf_mlp_fusion import calibrate_ntk
        >>> calibrate_ntk(fused, model, batches)  # doctest: +SKIP
        {'encoder.layer.4': (3.2, 0.9), ...}
    """
    batches = list(batches)
    names = [ffn.name for ffn in _fused_ffns(fused)]
    return match_kernel_sizes(fused, kernel_sizes(original, names, batches), batches)


def kernel_sizes(model: PreTrainedModel, names: Iterable[str], batches: Iterable[Batch]) -> dict[str, float]:
    """The sizes ‖G sign(G)ᵀ‖_F of the Adam kernels that s1, s2 and s3 scale, two an FFN, or three with a gate.

    Args:
        model: A stock or fused model.
        names: Names of FFNs.
        batches: Batches of tokens.

    Returns:
        By FFN name followed by `":inner"` (the projection whose output the activation sees), `":value"` (the up
        projection beside a gate) or `":outer"` (the down projection without its bias).

    Raises:
        UnsupportedModelError: The model lacks one of the FFNs.
    """
    found = {ffn.name: ffn for ffn in find_ffns(model)}
    blocks: dict[str, list[str | Rows]] = {}
    for name in names:
        if name not in found:
            raise UnsupportedModelError(f"the original has no FFN {name!r}: it is another model")
        for part, parameters in found[name].kernel_parts().items():
            blocks[f"{name}:{part}"] = parameters
    return {name: float(block.norm()) for name, block in ntk(model, batches, parameters=blocks).blocks.items()}


def match_kernel_sizes(
    fused: PreTrainedModel, wanted: Mapping[str, float], batches: Iterable[Batch]
) -> dict[str, tuple[float, ...]]:
    """The second half of `calibrate_ntk`, for when the original is no longer there.

    Args:
        fused: A fused model; changed in place.
        wanted: The original's `kernel_sizes` of its fused FFNs, on the same batches.
        batches: Batches of tokens.

    Returns:
        (s1, s2) of each fused FFN by name, (s1, s2, s3) of a gated one.
    """
    ffns = _fused_ffns(fused)
    found = kernel_sizes(fused, [ffn.name for ffn in ffns], batches)
    scales = {}
    for ffn in ffns:
        names = {part: f"{ffn.name}:{part}" for part in ffn.kernel_parts()}
        ratios = {part: _ratio(wanted[name], found[name]) for part, name in names.items()}
        if None in ratios.values():
            logger.warning("no gradient reached %s: the size of its kernels is not matched", ffn.name)
        scales[ffn.name] = _rescale(ffn, {part: ratio or 1.0 for part, ratio in ratios.items()})
    entries = {ffn.entry: ffn.holder.scales for ffn in ffns if ffn.holder is not None}
    fused.config.mlp_fusion = FusionSection.from_dict(fused.config.mlp_fusion).with_scales(entries).to_dict()
    return scales


def _fused_ffns(fused: PreTrainedModel) -> list[FFN]:
    ffns = [ffn for ffn in find_ffns(fused) if ffn.is_fused]
    if not ffns:
        raise UnsupportedModelError(f"{type(fused).__name__} has no fused FFN to calibrate")
    return ffns


def _ratio(wanted: float, found: float) -> float | None:
    """What to scale by; None for an expert that no sample reached, which stays as it is."""
    ratio = wanted / found if found > 0 else 0.0
    return ratio if math.isfinite(ratio) and ratio > 0 else None


@torch.no_grad()
def _rescale(ffn: FFN, ratios: Mapping[str, float]) -> tuple[float, ...]:
    scaling, weights = ffn.scaling, ffn.read()
    assert scaling is not None
    before = (*scaling.scales, 1.0)[:3]
    wanted = (ratios.get(part, 1.0) for part in ("inner", "outer", "value"))
    scaling.scales = [scale * by for scale, by in zip(before, wanted, strict=True)]
    # By what they were set to, which is rounded: the output stays to the last bit that it can.
    inner, outer, value = (new / old for new, old in zip((*scaling.scales, 1.0), before, strict=False))
    changed = dict.fromkeys(weights.seen, inner) | dict.fromkeys(weights.values, value) | {"down": outer}
    parts = {name: getattr(weights, name) / by for name, by in changed.items()}
    ffn.write(ffn.tensors(replace(weights, **parts)))
    return scaling.scales
