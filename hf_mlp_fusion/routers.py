"""Freezing the routers of a mixture-of-experts model."""

from __future__ import annotations

import re

from torch import nn
from transformers import PreTrainedModel

from .errors import UnsupportedModelError
from .families import family_of

__all__ = ["freeze_routers"]


def freeze_routers(model: PreTrainedModel) -> list[str]:
    """Freezes the routers, as the paper does when it fine-tunes fused Switch Transformers.

    Args:
        model: A stock or fused mixture-of-experts model.

    Returns:
        Names of the parameters that no longer train.

    Raises:
        UnsupportedModelError: The model has no routers.
    """
    pattern = family_of(model.config).router
    routers: list[tuple[str, nn.Parameter]] = [
        (name, parameter) for name, parameter in model.named_parameters() if pattern and re.fullmatch(pattern, name)
    ]
    if not routers:
        raise UnsupportedModelError(f"{type(model).__name__} has no routers to freeze")
    for _, parameter in routers:
        parameter.requires_grad_(False)
    return [name for name, _ in routers]
