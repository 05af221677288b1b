"""What a family file says: where the FFNs of a model family are, in the terms of its stock modules."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["FFNSpec", "Family"]


@dataclass(frozen=True)
class FFNSpec:
    """One kind of FFN in a family.

    Args:
        host: Class name of the stock module that the paths below start from.
        pattern: Regular expression for the host's name within the base model. Named groups: `layer` (number, needed),
            `stack` (`encoder` or `decoder`), `expert` (number).
        up: Path of the up projection below the host.
        down: Path of the down projection.
        activation: Path of the activation module.
        gate: Path of the gate projection, in gated FFNs.
    """

    host: str
    pattern: str
    up: str
    down: str
    activation: str
    gate: str | None = None

    @property
    def narrowed(self) -> tuple[str, ...]:
        """Paths of the projections whose outputs are hidden units."""
        return (self.up,) if self.gate is None else (self.up, self.gate)


@dataclass(frozen=True)
class Family:
    """A model family.

    Args:
        model_type: The stock config's `model_type`.
        config_class: Name of the stock config class in `transformers`.
        ffns: The kinds of FFN it has.
        router: Regular expression for the parameter names of MoE routers, where the family has any.
        peft_like: A `model_type` whose modules have the same names, and whose default adapter targets the family gets
            where PEFT has none for its own.
        width_field: Name of the config field that holds the width of all FFNs; `export_plain` needs it.
    """

    model_type: str
    config_class: str
    ffns: tuple[FFNSpec, ...]
    router: str | None = None
    peft_like: str | None = None
    width_field: str | None = None

    def spec_of(self, name: str) -> FFNSpec | None:
        """The kind of FFN that has this name within the base model; None where it is no FFN's name."""
        return next((spec for spec in self.ffns if re.fullmatch(spec.pattern, name)), None)
