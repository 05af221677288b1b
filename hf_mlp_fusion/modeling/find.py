"""`find_ffns`: the FFNs of a model, found by its family's specs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from transformers import PreTrainedModel

from ..families import family_of
from .ffn import FFN
from .packed import PackedFFN

__all__ = ["LAYOUTS", "find_ffns"]

LAYOUTS: dict[str, type[FFN]] = {"split": FFN, "packed": PackedFFN}
"""Handles by the layout that a spec names (`hf_mlp_fusion.families.spec.FFNSpec`)."""


def find_ffns(model: PreTrainedModel) -> Iterator[FFN]:
    """Yields the FFNs of a model in the order of its modules.

    Args:
        model: A stock or fused model of a registered family, with any head.

    Raises:
        UnsupportedModelError: Its family is not registered.
    """
    family = family_of(model.config)
    base = model.base_model
    prefix = next((f"{name}." for name, module in model.named_modules() if module is base and name), "")
    patterns = [(spec, re.compile(spec.pattern)) for spec in family.ffns]
    for name, module in base.named_modules():
        for spec, pattern in patterns:
            match = pattern.fullmatch(name)
            # Two kinds may share a name (T5's plain and gated FFNs): the host's class tells them apart.
            if not match or not any(cls.__name__ == spec.host for cls in type(module).__mro__):
                continue
            groups = match.groupdict()
            expert = groups.get("expert")
            yield LAYOUTS[spec.layout](
                name=name,
                prefix=prefix,
                host=module,
                spec=spec,
                stack=groups.get("stack") or "",
                layer=int(groups.get("layer") or 0),
                expert=None if expert is None else int(expert),
            )
