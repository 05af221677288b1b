"""What a family says: where the FFNs of its models are, in the terms of its stock modules."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["FFNSpec", "Family"]


@dataclass(frozen=True)
class FFNSpec:
    """One kind of FFN in a family.

    Args:
        host: Class name of the stock module that the paths below start from.
        pattern: Regular expression for the host's name within the base model. Named groups: `layer` (number; 0 where
            there is one such module alone), `stack` (`encoder`, `decoder`, or another name for one of several stacks),
            `expert` (number).
        up: Path of the up projection below the host.
        down: Path of the down projection.
        activation: Path of the activation module; None where the stock forward calls a function.
        gate: Path of the gate projection, in gated FFNs whose gate is a module of its own.
        packed: How `up` holds both gate and up projection, where it does: `"halves"` (the gate first) or
            `"interleaved"` (gate and up in turn, the gate first).
        stacked: Whether the host keeps its experts as 3-D parameters, an expert an entry. `up` and `down` are their
            names then, `gate` is that of `up` where it holds gates too, and the host says how they lie in it.
        function: transformers' name (`ACT2FN`) of the activation, where it is no module.
        width_field: Name of the config field that holds the width, dotted where it lies in a sub-config; where none is
            given, the family's.
        field_value: What that field is for a width, where it is another number; takes the values of the
            config (or sub-config), the other widths in their place, and the width.
        padding: How tokens that are padding are told: `"mask"` (the attention mask has one number a token), `"cut"`
            (it has one for each of the raw inputs, so rows are cut to what is no padding, and run one by one) or
            `"none"` (there is no padding, as in images).
    """

    host: str
    pattern: str
    up: str
    down: str
    activation: str | None = None
    gate: str | None = None
    packed: str | None = None
    stacked: bool = False
    function: str | None = None
    width_field: str | None = None
    field_value: Callable[[Any, int], Any] | None = None
    padding: str = "mask"

    @property
    def layout(self) -> str:
        """How the weights are kept: `"split"`, each projection a module of its own, `"packed"` or `"stacked"`."""
        if self.stacked:
            return "stacked"
        return "split" if self.packed is None else "packed"

    @property
    def projections(self) -> dict[str, str]:
        """Paths of the projections below the host, by the part that they hold, the down projection last."""
        parts = {"up": self.up, "gate": None if self.stacked else self.gate, "down": self.down}
        return {part: path for part, path in parts.items() if path is not None}

    @property
    def owner(self) -> str:
        """Path of the module that becomes a `FusedMLP`: that of the activation, or of the down projection."""
        return (self.activation or self.down).rpartition(".")[0]

    @property
    def scaling(self) -> str:
        """Path of the module that holds P in a fused FFN: at the activation's place, or beside the down projection."""
        return self.activation or f"{self.owner}.cluster_scaling".lstrip(".")

    @property
    def scaling_path(self) -> str:
        """Where a fused FFN keeps P, below the host."""
        return f"{self.scaling}.cluster_sizes"

    def rows_per_unit(self, part: str) -> int:
        """How many outputs of a projection one hidden unit has.

        Args:
            part: `"up"` or `"gate"`.
        """
        both = self.packed is not None or (self.stacked and self.gate is not None)
        return 2 if both and part == "up" else 1

    def stored_weights(self, form: str, width: int) -> dict[str, int]:
        """The weights of a reduced FFN as a checkpoint holds them.

        Args:
            form: Its form (`hf_mlp_fusion.modeling.forms.FORMS`).
            width: Its hidden units, or its rank.

        Returns:
            The size that one of its axes has, by its path below the host.
        """
        if form == "low_rank":
            halves = ("first.weight", "second.weight")
            return {f"{path}.{half}": width for path in self.projections.values() for half in halves}
        ending = "" if self.stacked else ".weight"
        return {
            f"{path}{ending}": width if part == "down" else width * self.rows_per_unit(part)
            for part, path in self.projections.items()
        }

    def layers_path(self, name: str) -> str:
        """Path of the list of layers that holds an FFN.

        Args:
            name: The FFN's name.
        """
        match = re.fullmatch(self.pattern, name)
        assert match is not None, name
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
        lora_targets: The modules that LoRA adapts by default, where PEFT has no row for it or its like.
        width_field: Name of the config field that holds the width of all FFNs; `export_plain` needs it.
        note: What users should know, in a sentence.
    """

    model_type: str
    config_class: str
    ffns: tuple[FFNSpec, ...]
    router: str | None = None
    peft_like: str | None = None
    lora_targets: tuple[str, ...] | None = None
    width_field: str | None = None
    note: str = ""

    def specs_of(self, name: str) -> list[FFNSpec]:
        """The kinds of FFN that may have a name within the base model; none where it is no FFN's name.

        Args:
            name: The name. Where there are several kinds, the class of the module of that name tells which it is.
        """
        return [spec for spec in self.ffns if re.fullmatch(spec.pattern, name)]

    def width_field_of(self, spec: FFNSpec) -> str | None:
        """Name of the config field that holds the width of one kind of FFN, dotted; None where none does."""
        return spec.width_field or self.width_field
