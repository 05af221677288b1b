"""Which FFN of a fused model answers to which of the original."""

from __future__ import annotations

from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from ..modeling.ffn import FFN
from ..modeling.find import find_ffns
from ..modeling.rows import Rows

__all__ = ["parameter_blocks", "reduced_ffns", "reduced_pairs"]


def reduced_ffns(fused: PreTrainedModel) -> list[str]:
    """Names of the FFNs that were fused; none in a stock model."""
    section = getattr(fused.config, "mlp_fusion", None)
    return [ffn.name for ffn in find_ffns(fused) if section and ffn.entry in section["ffns"]]


def reduced_pairs(original: PreTrainedModel, fused: PreTrainedModel) -> list[tuple[FFN, FFN]]:
    """The fused FFNs, each with its original.

    Raises:
        UnsupportedModelError: The models do not belong together.
    """
    before, after = ({ffn.name: ffn for ffn in find_ffns(model)} for model in (original, fused))
    names = reduced_ffns(fused)
    for name in names:
        if name not in before or before[name].hidden_size != after[name].hidden_size:
            raise UnsupportedModelError(f"the original has no FFN {name!r} of the same size: it is another model")
    return [(before[name], after[name]) for name in names]


def parameter_blocks(model: PreTrainedModel, names: list[str]) -> dict[str, list[str | Rows]]:
    """The stored weights of FFNs: full parameter names, or what they have of a parameter, by FFN name.

    Args:
        model: A stock or fused model.
        names: Names of FFNs.
    """
    found = {ffn.name: ffn for ffn in find_ffns(model)}
    return {name: found[name].parameter_items() for name in names}
