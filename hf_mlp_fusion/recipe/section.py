"""The `mlp_fusion` section of a fused model's `config.json`: what `from_pretrained` needs to rebuild the modules."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import BrokenCheckpointError, FusionConfigError
from .config import FusionConfig
from .power import is_power

FORM_NAMES = ("fused", "narrow", "low_rank")

__all__ = ["FORM_NAMES", "FFNWidth", "FusionSection"]

_MOST_FFNS = 10**5  # Switch-C has 2,048 experts in each of 15 layers
_LARGEST_WIDTH = 2**24  # units; two orders above any FFN known, and small enough to fail before memory does


@dataclass(frozen=True)
class FFNWidth:
    """Widths of one fused FFN.

    Args:
        width: Hidden units now, k.
        original_width: Hidden units before, I.
        form: What it has become: `"fused"`, or what a baseline makes (`hf_mlp_fusion.modeling.forms.FORMS`).
        scales: s1 and s2 of the NTK calibration, where there was one, and s3 of a gated FFN; of a stack, those of each
            expert.
        host: Class of its stock module, where the family has several kinds of FFN under one name (T5's plain and
            gated ones).
        power: Power of the cluster sizes that P is.
    """

    width: int
    original_width: int
    form: str = "fused"
    scales: tuple[Any, ...] | None = None
    host: str | None = None
    power: float = 1.0


@dataclass(frozen=True)
class FusionSection:
    """The section, read and checked.

    Args:
        recipe: What was asked for.
        source: The model that was fused: `name_or_path`, `model_type`, `architecture`, `dtype`.
        ffns: The widths of each fused FFN, by its name within the base model.
        method: What made the model: `"fusion"`, or a baseline.
    """

    recipe: FusionConfig
    source: dict[str, Any]
    ffns: dict[str, FFNWidth]
    method: str = "fusion"

    def to_dict(self) -> dict[str, Any]:
        """Returns the section as plain JSON values."""
        ffns: dict[str, dict[str, Any]] = {}
        for name, ffn in sorted(self.ffns.items()):
            ffns[name] = {"width": ffn.width, "original_width": ffn.original_width}
            if ffn.form != "fused":
                ffns[name]["form"] = ffn.form
            if ffn.scales is not None:
                ffns[name]["scales"] = list(ffn.scales)
            if ffn.host is not None:
                ffns[name]["host"] = ffn.host
            if ffn.power != 1.0:
                ffns[name]["power"] = ffn.power
        values = {"recipe": self.recipe.to_dict(), "source": self.source, "ffns": ffns}
        return values if self.method == "fusion" else values | {"method": self.method}

    def with_scales(self, scales: Mapping[str, tuple[Any, ...] | None]) -> FusionSection:
        """The section with the scales of an NTK calibration.

        Args:
            scales: s1, s2 and, where there is one, s3 by name of the entry, of a stack those of each expert; the other
                entries keep theirs.
        """
        ffns = {name: replace(ffn, scales=scales.get(name, ffn.scales)) for name, ffn in self.ffns.items()}
        return replace(self, ffns=ffns)

    def entry_of(self, name: str) -> str:
        """Name of the entry that speaks of an FFN: its own, or that of the stack of experts that it is in.

        Args:
            name: The FFN's name within the base model, as receipts have it.
        """
        return name if name in self.ffns else name.rpartition(".")[0]

    @classmethod
    def from_dict(cls, values: object) -> FusionSection:
        """Reads and checks a section.

        Args:
            values: The value of `mlp_fusion` in a config.

        Raises:
            BrokenCheckpointError: It is no such section.
            FusionConfigError: It was written by a newer version of this package.
        """
        if not isinstance(values, Mapping) or set(values) - {"method"} != {"recipe", "source", "ffns"}:
            raise _broken("it must have the fields recipe, source and ffns, and no others")
        if isinstance(values["recipe"], Mapping) and isinstance(version := values["recipe"].get("version"), int):
            FusionConfig(version=max(version, 1))  # a newer version is not broken: it says to upgrade
        try:
            recipe = FusionConfig.from_dict(values["recipe"])
        except (FusionConfigError, TypeError) as error:
            raise _broken(f"recipe: {error}") from error
        if not isinstance(values["source"], Mapping) or not isinstance(values["ffns"], Mapping):
            raise _broken("source and ffns must be objects")
        if not all(value is None or isinstance(value, str) for value in values["source"].values()):
            raise _broken("source must hold names only")
        if len(values["ffns"]) > _MOST_FFNS:
            raise _broken(f"it names {len(values['ffns']):,} FFNs, more than any model has")
        ffns = {}
        for name, widths in values["ffns"].items():
            if (
                not isinstance(name, str)
                or not isinstance(widths, Mapping)
                or set(widths) - {"form", "scales", "host", "power"} != {"width", "original_width"}
            ):
                raise _broken(f"ffns[{name!r:.80}] must have the fields width and original_width")
            width, original_width = widths["width"], widths["original_width"]
            for value in (width, original_width):
                if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST_WIDTH:
                    raise _broken(f"ffns[{name!r:.80}]: {value!r:.40} is no number of hidden units")
            if width > original_width:
                raise _broken(f"ffns[{name!r:.80}]: {width} units cannot stand for {original_width}")
            if (form := widths.get("form", "fused")) not in FORM_NAMES:
                raise _broken(f"ffns[{name!r:.80}]: unknown form {form!r:.40}; written by a newer hf_mlp_fusion?")
            host = widths.get("host")
            if host is not None and not isinstance(host, str):
                raise _broken(f"ffns[{name!r:.80}]: host must be the name of a class")
            power = widths.get("power", 1.0)
            if not is_power(power):
                raise _broken(f"ffns[{name!r:.80}]: power must be a number from 0 to 1, not {power!r:.40}")
            scales = _scales(name, widths.get("scales"))
            ffns[name] = FFNWidth(width, original_width, form, scales, host, float(power))
        method = values.get("method", "fusion")
        if not isinstance(method, str) or not method:
            raise _broken("method must be a name")
        return cls(recipe, dict(values["source"]), ffns, method)


def _scales(name: str, values: object) -> tuple[Any, ...] | None:
    if values is None:
        return None
    if isinstance(values, Sequence) and values and all(isinstance(value, list | tuple) for value in values):
        return tuple(_scales(name, value) for value in values)  # of a stack
    if (
        not isinstance(values, Sequence)
        or len(values) not in (2, 3)
        or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        or not all(0 < value <= sys.float_info.max for value in values)
    ):
        raise _broken(f"ffns[{name!r:.80}]: scales must be two positive numbers, or three, not {values!r:.60}")
    return tuple(map(float, values))


def _broken(what: str) -> BrokenCheckpointError:
    return BrokenCheckpointError(f"the mlp_fusion section of config.json is broken: {what}")
