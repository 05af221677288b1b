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
        layout: How the weights are kept: `"split"`, each projection a module of its own.
    """

    host: str
    pattern: str
    up: str
    down: str
    activation: str
    gate: str | None = None
    layout: str = "split"

    @property
    def projections(self) -> dict[str, str]:
        """Paths of the projections below the host, by the part that they hold, the down projection last."""
        parts = {"up": self.up, "gate": self.gate, "down": self.down}
        return {part: path for part, path in parts.items() if path is not None}

    @property
    def scaling_path(self) -> str:
        """Where a fused FFN keeps P, below the host."""
        return f"{self.activation}.cluster_sizes"

    def rows_per_unit(self, part: str) -> int:
        """How many outputs of a projection one hidden unit has.

        Args:
            part: `"up"` or `"gate"`.
        """
        return 1

    def stored_weights(self, form: str, width: int) -> dict[str, int]:
        """The weights of a reduced FFN as a checkpoint holds them.

        Args:
            form: Its form (`hf_mlp_fusion.modeling.forms.FORMS`).
            width: Its hidden units, or its rank.

        Returns:
            The size that one of its axes has, by its path below the host.
        """
        if form == "low_rank":
            return {
                f"{path}.{half}.weight": width for path in self.projections.values() for half in ("first", "second")
            }
        return {
            f"{path}.weight": width if part == "down" else width * self.rows_per_unit(part)
            for part, path in self.projections.items()
        }

    def layers_path(self, name: str) -> str:
        """Path of the list of layers that holds an FFN.

        Args:
            name: The FFN's name.
        """
        match = re.fullmatch(self.pattern, name)
        assert match is not None
        return name[: match.start("layer")].rstrip(".")


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
