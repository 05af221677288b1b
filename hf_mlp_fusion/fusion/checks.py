"""Which models can be made smaller."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from ..errors import FusionConfigError, UnsupportedModelError
from ..families import family_of
from ..modeling.building import check_built
from ..modeling.classes import FusedModelMixin
from ..modeling.ffn import FFN

__all__ = ["check_finite", "check_reducible", "check_whole"]


def check_finite(ffn: FFN) -> None:
    """Checks that the units of an FFN are numbers.

    Args:
        ffn: The FFN.

    Raises:
        FusionConfigError: One is not.
    """
    weights = ffn.read()
    parts = (weights.up, weights.up_bias, weights.gate, weights.gate_bias, weights.down)
    if not all(torch.isfinite(part).all() for part in parts if part is not None):
        raise FusionConfigError(f"the weights of {ffn.name} hold NaN or infinity: the checkpoint is broken")


def check_reducible(model: PreTrainedModel, *, empty: bool = False) -> None:
    """Checks that a model is one that can be made smaller.

    Args:
        model: The model.
        empty: Whether its weights are still to come, and it is on the meta device.

    Raises:
        UnsupportedModelError: It is not, and why.
    """
    if isinstance(model, FusedModelMixin):
        raise UnsupportedModelError(
            "the model is fused already, and fusion cannot be repeated or undone: start from the original, "
            f"{model.config.mlp_fusion['source'].get('name_or_path') or 'the model that was fused'}"
        )
    check_whole(model, empty=empty)


def check_whole(model: PreTrainedModel, *, empty: bool = False) -> None:
    """Checks that all weights of a model are there to be read and written, and nothing else computes beside them.

    Args:
        model: The model, stock or fused.
        empty: As for `check_reducible`.

    Raises:
        UnsupportedModelError: They are not, and why; or its family is not supported, or the model is not what its
            class and config build.
    """
    if not isinstance(model, PreTrainedModel):
        hint = "; call merge_and_unload() first" if hasattr(model, "peft_config") else ""
        raise UnsupportedModelError(f"a transformers model is needed, not a {type(model).__name__}{hint}")
    if getattr(model, "peft_config", None):
        raise UnsupportedModelError("the model carries PEFT adapters: merge or delete them first, add adapters after")
    if getattr(model, "is_quantized", False) and not _from_gguf(model):
        raise UnsupportedModelError("the model is quantized: load it without quantization, and quantize afterwards")
    family_of(model.config)
    if not empty and any(tensor.is_meta for tensor in model.state_dict().values()):
        raise UnsupportedModelError("some weights are offloaded or on the meta device: load the model without that")
    check_built(model)


def _from_gguf(model: PreTrainedModel) -> bool:
    """Whether a model was read from GGUF and is all floats now: it calls itself quantized, and is not."""
    method = getattr(model, "quantization_method", None)
    return str(getattr(method, "value", method)) == "gguf" and all(p.is_floating_point() for p in model.parameters())
