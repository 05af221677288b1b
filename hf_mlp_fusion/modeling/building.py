"""Building a model of one class from the tensors and the config of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["convert_config", "rebuild"]


def rebuild(
    model: PreTrainedModel,
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    state: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
) -> Any:
    """Builds a model from tensors, with the device, mode and generation config of another.

    The public `from_pretrained` does it: it ties weights, fills unsaved buffers and hooks up recorded outputs.

    Args:
        model: The other model.
        cls: Class of the model to build.
        config: Its config.
        state: Its tensors, by name; it takes them over.
        dtype: Its dtype, that of the other model if not given.
    """
    experts = getattr(model.config, "_experts_implementation", None)
    built: Any = cls.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=dtype or model.dtype,
        device_map=None if model.device.type == "cpu" else {"": model.device},
        attn_implementation=model.config._attn_implementation,
        **({"experts_implementation": experts} if cls._can_set_experts_implementation() else {}),
    )
    built.train(model.training)
    if getattr(model, "generation_config", None) is not None:
        built.generation_config = model.generation_config
    return built


def convert_config(config: PreTrainedConfig, cls: type[PreTrainedConfig], changes: Mapping[str, Any]) -> Any:
    """The same fields in a config of another class.

    Args:
        config: The config of a stock or fused model.
        cls: The fused or stock config class of the same family.
        changes: Fields that get other values.
    """
    values = config.to_dict()
    # No quantization either: the tensors that a model is built from are floats.
    for name in ("model_type", "transformers_version", "architectures", "mlp_fusion", "quantization_config"):
        values.pop(name, None)
    return cls.from_dict(values | dict(changes))
