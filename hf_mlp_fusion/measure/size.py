"""Size of a model."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from ..modeling.find import find_ffns

__all__ = ["ModelSize", "model_size"]


@dataclass(frozen=True)
class ModelSize:
    """Size of a model.

    Args:
        parameters: Parameters, tied ones once.
        ffn_parameters: Those in FFNs.
        bytes: Bytes of parameters and buffers.
    """

    parameters: int
    ffn_parameters: int
    bytes: int


def model_size(model: PreTrainedModel) -> ModelSize:
    """Counts a model's parameters and bytes.

    Args:
        model: A stock or fused model of a supported family.
    """
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    ffn_parameters = sum(sizes[name] for ffn in find_ffns(model) for name in ffn.parameter_names())
    return ModelSize(model.num_parameters(), ffn_parameters, model.get_memory_footprint())
