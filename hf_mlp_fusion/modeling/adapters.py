"""What PEFT needs of fused models: rows in its tables of default target modules, and adapters of other widths refused.

All else works by itself, for a fused FFN's projections are stock modules under their stock names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..errors import BrokenCheckpointError
from ..families import Family
from .find import by_entry, find_ffns
from .modules import FusedMLP

__all__ = ["add_default_targets", "refuse_other_widths", "tell_nameless_base"]

logger = logging.getLogger(__name__)

_WRAPPED = "base_model.model."  # what PEFT puts before the names of a model that it wraps
_LORA = "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"


def add_default_targets(family: Family, fused_type: str) -> None:
    """Gives a family's fused type the stock type's row in each of PEFT's tables by `model_type`.

    Args:
        family: The family. Where PEFT has no row for it, the row of its `peft_like` is taken, and for LoRA its
            `lora_targets` where there is none either.
        fused_type: The `model_type` of its fused configs.
    """
    # A tenth of a second after the model code, which has taken two: no reason to wait until PEFT is used.
    from peft.utils import constants

    for name, table in vars(constants).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_"):
            row = table.get(family.model_type, table.get(family.peft_like))
            if row is None and family.lora_targets is not None and name == _LORA:
                row = list(family.lora_targets)
            if row is not None:
                table.setdefault(fused_type, row)


def refuse_other_widths(model: PreTrainedModel, state_dict: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Refuses weights that were made for FFNs of other widths, before any of them is loaded.

    A hook for `nn.Module.register_load_state_dict_pre_hook`. All that PEFT loads passes it, and so do the checkpoints
    that Trainer resumes from.

    Args:
        model: A fused model, with or without adapters.
        state_dict: What is being loaded: all weights, or some.
        prefix: What the names of the model's weights begin with there.

    Raises:
        BrokenCheckpointError: They belong to the unfused model, or to one that was fused to other widths.
    """
    for ffn in (group[0] for group in by_entry(find_ffns(model))):
        if not isinstance(owner := ffn.owner, FusedMLP):
            continue
        rows = ffn.spec.rows_per_unit("up")  # of a packed projection
        for name in ffn.parameter_names():
            if (tensor := state_dict.get(prefix + name)) is None:
                continue
            for size, needed in zip(tensor.shape, model.get_parameter(name).shape, strict=False):
                if needed != size and needed in (owner.width, rows * owner.width):
                    raise _other_width(name, size * owner.width // needed, owner)


def tell_nameless_base(model: PreTrainedModel, prefix: str, *_: Any) -> None:
    """Says once that an adapter of a model which was never loaded from anywhere will name no base.

    A hook for `nn.Module.register_state_dict_pre_hook`, which all ways to save an adapter pass.

    Args:
        model: A fused model.
        prefix: What the names of the model's weights begin with: PEFT's wrapping shows there.
    """
    if _WRAPPED in prefix and not model.name_or_path and not getattr(model, "told_nameless_base", False):
        model.told_nameless_base = True  # type: ignore[assignment]
        logger.warning(
            "The base of this adapter was fused in memory, and the adapter names none: save the fused model, load it "
            "with from_pretrained, and adapt that, for the adapter to be loaded elsewhere"
        )


def _other_width(name: str, size: int, here: FusedMLP) -> BrokenCheckpointError:
    if size == here.original_width:
        whose, mend = "the unfused model", "an adapter can be merged there (merge_and_unload), and the result be fused"
    else:
        whose, mend = "a model fused to other widths", "to have an adapter here, train one on this model"
    return BrokenCheckpointError(
        f"these weights belong to {whose}: {name!r} is for {size} hidden units, here are {here.width}. "
        f"Load them there; {mend}"
    )
