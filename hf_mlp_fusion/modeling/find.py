"""`find_ffns`: the FFNs of a model, found by its family's specs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..families import family_of
from .ffn import FFN
from .packed import PackedFFN
from .stacked import StackedFFN

__all__ = ["LAYOUTS", "by_entry", "find_ffns"]

LAYOUTS: dict[str, type[FFN]] = {"split": FFN, "packed": PackedFFN, "stacked": StackedFFN}
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
            host = _unwrapped(module)
            if not match or not any(cls.__name__ == spec.host for cls in type(host).__mro__):
                continue
            groups = match.groupdict()
            parts: dict[str, Any] = {
                "prefix": prefix,
                "host": host,
                "wrapper": None if host is module else module,
                "spec": spec,
                "stack": groups.get("stack") or "",
                "layer": int(groups.get("layer") or 0),
            }
            if spec.layout == "stacked":
                for expert in range(len(getattr(host, spec.down))):
                    yield StackedFFN(name=f"{name}.{expert}", expert=expert, **parts)
                continue
            number = groups.get("expert")
            yield LAYOUTS[spec.layout](name=name, expert=None if number is None else int(number), **parts)


def by_entry(ffns: Iterable[FFN]) -> list[list[FFN]]:
    """FFNs by their entries in the config section: each alone, and the experts of a stack together.

    Args:
        ffns: The FFNs.
    """
    groups: dict[str, list[FFN]] = {}
    for ffn in ffns:
        groups.setdefault(ffn.entry, []).append(ffn)
    return list(groups.values())


def _unwrapped(module: nn.Module) -> nn.Module:
    """A module itself, where PEFT has wrapped it for an adapter of its parameters."""
    unwrap = getattr(module, "get_base_layer", None)
    return module if unwrap is None else unwrap()
