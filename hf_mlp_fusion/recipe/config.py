"""`FusionConfig`: what to fuse and how."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import FusionConfigError, check_choice
from .layers import check_layers
from .power import is_power

__all__ = ["CLUSTERINGS", "METRICS", "NTKS", "REFITS", "SELECTIONS", "TARGETS", "FusionConfig", "check_recipe"]

TARGETS = ("auto", "dense", "experts", "all")
CLUSTERINGS = ("ward", "kmeans")
SELECTIONS = ("auto", "clusters", "obs")
METRICS = ("auto", "output", "loss")
REFITS = ("auto", "none", "bias", "output")
NTKS = ("auto", "none", "match")
VERSION = 2


@dataclass(frozen=True)
class FusionConfig:
    """The recipe of a fusion. It is validated on construction and immutable afterwards.

    Args:
        width: Hidden units that each fused FFN keeps: a number of units (`384`), a share of its own width (`0.25`),
            or `{name pattern: units or share}`, the first matching pattern deciding; or `"auto:0.25"`, that share of
            the units of all FFNs, each getting as many as its calibration error asks for.
        layers: Which layers to fuse. In an encoder-decoder each stack counts by itself.
        targets: Which kind of FFN to fuse.
        clustering: How the hidden units are grouped, where they are clustered.
        selection: Which units stay: centroids of clusters, or real units.
        refit: What is fitted to calibration data afterwards.
        ntk: Whether the size of the training dynamics is matched on calibration data.
        power: Power of the cluster sizes that stands apart as P while the rest is in the weights, which changes no
            output and how the model trains: 1 as in the paper, 0.5, or 0 for no P (docs/dynamics.md).
        seed: Seed of the clustering, where it has any randomness (`"kmeans"`; Ward has none).
        multiple_of: Shares are rounded to a multiple of this number of units, so that widths suit the hardware.
        metric: What an error of an FFN's output costs, when units are chosen and widths searched for by calibration.
        version: Version of this format.

    Raises:
        FusionConfigError: A field has a value that can not be carried out; the message says what to write instead.

    Example:
        >>> FusionConfig(width=0.25, layers="last:8")
        FusionConfig(width=0.25, layers='last:8', targets='auto', clustering='ward', ...)
    """

    width: int | float | str | dict[str, int | float] = field(
        default=0.25,
        metadata={
            "help": 'Units to keep (384), a share (0.25), {name pattern: units or share}, or "auto:0.25": a share of '
            "all units, given to the layers that need them most (by calibration data)."
        },
    )
    layers: str | list[int] | list[str] = field(
        default="all",
        metadata={
            "help": 'Layers to fuse: "all", "last:8", "first:4", "4:12", a list of numbers, or FFN name patterns '
            'such as "encoder.layer.1?".'
        },
    )
    targets: str = field(
        default="auto",
        metadata={"help": '"auto" (experts where the model has any, else dense FFNs), "dense", "experts" or "all".'},
    )
    clustering: str = field(
        default="ward", metadata={"help": 'How units are grouped: "ward" (better and much faster) or "kmeans".'}
    )
    selection: str = field(
        default="auto",
        metadata={
            "help": '"clusters" (centroids of clustered units), "obs" (real units, chosen by optimal brain surgeon on '
            'calibration data), or "auto": obs with calibration data, clusters without.'
        },
    )
    refit: str = field(
        default="auto",
        metadata={
            "help": '"none", "bias" (match the mean output), "output" (solve the down projection in closed form), or '
            '"auto": output with calibration data, none without.'
        },
    )
    ntk: str = field(
        default="auto",
        metadata={
            "help": '"none", "match" (give the Adam kernels the original\'s size: calibrate_ntk), or "auto": match '
            "with obs and power 1, none otherwise."
        },
    )
    power: float | str = field(
        default="auto",
        metadata={
            "help": "Power of the cluster sizes that stands apart as P, from 0 (all in the weights) to 1 (as in the "
            'paper), or "auto": 0 with obs, 1 with clusters.'
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of the clustering, where it has any randomness."})
    multiple_of: int = field(default=64, metadata={"help": "Shares are rounded to a multiple of this many units."})
    metric: str = field(
        default="auto",
        metadata={
            "help": '"output" (its square), "loss" (what it costs the predictions of a trained head, by a backward '
            'pass), or "auto": loss for language models with obs, output for all others.'
        },
    )
    version: int = field(default=VERSION, metadata={"help": "Version of this format."})

    def __post_init__(self) -> None:
        if not _is_int(self.version) or self.version < 1:
            raise FusionConfigError(f"version must be a positive integer, not {self.version!r}")
        if self.version > VERSION:
            raise FusionConfigError(
                f"this recipe has version {self.version}, this hf_mlp_fusion reads up to {VERSION}: "
                "run `pip install -U hf_mlp_fusion`"
            )
        if isinstance(self.width, Mapping):
            if not self.width:
                raise FusionConfigError(
                    "width={} names no FFN: write {'encoder.layer.*': 0.25}, or one number for all"
                )
            for pattern, width in self.width.items():
                if not isinstance(pattern, str) or not pattern:
                    raise FusionConfigError(f"width patterns are strings such as 'encoder.layer.*', not {pattern!r}")
                _check_width(width, f"width[{pattern!r}]")
            object.__setattr__(self, "width", dict(self.width))
        elif isinstance(self.width, str):
            _check_width(self.auto_share, "width")
        else:
            _check_width(self.width, "width")
        object.__setattr__(self, "layers", check_layers(self.layers))
        for name, choices in (
            ("targets", TARGETS),
            ("clustering", CLUSTERINGS),
            ("selection", SELECTIONS),
            ("metric", METRICS),
            ("refit", REFITS),
            ("ntk", NTKS),
        ):
            check_choice(name, getattr(self, name), choices)
        if self.power != "auto" and not is_power(self.power):
            raise FusionConfigError(f"power must be a number from 0 to 1, or 'auto', not {self.power!r}")
        if not _is_int(self.seed) or not 0 <= self.seed < 2**32:
            raise FusionConfigError(f"seed must be an integer from 0 to 4294967295, not {self.seed!r}")
        if not _is_int(self.multiple_of) or self.multiple_of < 1:
            raise FusionConfigError(
                f"multiple_of must be a positive integer (64 suits GPUs, 1 rounds nothing), not {self.multiple_of!r}"
            )

    @property
    def auto_share(self) -> float | None:
        """The share of a width such as `"auto:0.25"`; None where widths are not searched for."""
        if not isinstance(self.width, str):
            return None
        match = re.fullmatch(r"auto:(\d*\.?\d+)", self.width)
        if not match:
            raise FusionConfigError(f"width={self.width!r} is not understood: write 384, 0.25, or 'auto:0.25'")
        return float(match[1])

    def resolved(self, *, calibrated: bool, language: bool = False) -> FusionConfig:
        """The recipe with each `"auto"` that calibration decides replaced by what it means.

        Args:
            calibrated: Whether there is calibration data.
            language: Whether the model is a language model with its head.

        Raises:
            FusionConfigError: The recipe needs calibration data and there is none, or it has no use for them.
        """
        selection, refit, ntk = self.selection, self.refit, self.ntk
        if selection == "auto":
            selection = "obs" if calibrated and refit in ("auto", "output") else "clusters"
        if refit == "auto":
            refit = "output" if calibrated else "none"
        power = self.power
        if isinstance(power, str):
            power = 0.0 if selection == "obs" else 1.0
        if ntk == "auto":
            ntk = "match" if selection == "obs" and power == 1 else "none"
        metric = self.metric
        if metric == "auto":
            metric = "loss" if language and selection == "obs" else "output"
        if metric == "loss" and selection != "obs":
            raise FusionConfigError("metric='loss' has a use with selection='obs' alone: leave one of them out")
        if self.auto_share is not None and selection != "obs":
            raise FusionConfigError(
                f"width={self.width!r} is found with selection='obs' on calibration data: pass calibration= (on the "
                "command line --texts), or write a share"
            )
        wants = {
            "selection='obs'": selection == "obs",
            f"refit={refit!r}": refit != "none",
            "ntk='match'": ntk == "match",
        }
        if not calibrated and any(wants.values()):
            asked = next(name for name, wanted in wants.items() if wanted)
            raise FusionConfigError(f"{asked} needs calibration data: pass calibration= (on the command line --texts)")
        if selection == "obs" and refit == "none":
            raise FusionConfigError("selection='obs' needs a refit: write refit='output'")
        if calibrated and not any(wants.values()):
            raise FusionConfigError("calibration data have no use with refit='none' and ntk='none': leave them out")
        return replace(self, selection=selection, metric=metric, refit=refit, ntk=ntk, power=round(float(power), 6))

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain JSON values."""
        return asdict(self)

    def to_json(self) -> str:
        """Returns the fields as a JSON object."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FusionConfig:
        """Reads what `to_dict` wrote.

        Args:
            values: Field names and values; missing fields take their defaults.

        Raises:
            FusionConfigError: An unknown field, a bad value, or a version newer than this package.
        """
        if not isinstance(values, Mapping):
            raise FusionConfigError(f"a recipe is an object of fields and values, not {type(values).__name__}")
        known = [f.name for f in fields(cls)]
        version = values.get("version", VERSION)
        if _is_int(version) and version > VERSION:
            cls(version=version)  # a newer version may well have fields unknown here: say the version, not the field
        unknown = [str(name) for name in values if name not in known]
        if unknown:
            raise FusionConfigError(f"unknown field {unknown[0]!r} in a recipe; the fields are {', '.join(known)}")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> FusionConfig:
        """Reads what `to_json` wrote. Raises `FusionConfigError` like `from_dict`, and on text that is not JSON."""
        try:
            return cls.from_dict(json.loads(text))
        except (json.JSONDecodeError, RecursionError) as error:
            raise FusionConfigError(f"the recipe is not JSON: {error}") from error

    @classmethod
    def from_file(cls, path: str | Path) -> FusionConfig:
        """Reads a recipe from a JSON file."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))


def check_recipe(config: object) -> None:
    """Checks that a recipe is one: a bare width is taken for it easily.

    Args:
        config: What was given.

    Raises:
        FusionConfigError: It is something else.
    """
    if not isinstance(config, FusionConfig):
        known = isinstance(config, int | float | str) and not isinstance(config, bool)
        example = f"width={config!r}" if known else "width=0.25"
        raise FusionConfigError(
            f"config must be a FusionConfig, not {config!r:.80}: write fuse_model(model, FusionConfig({example}))"
        )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_width(width: object, name: str) -> None:
    if _is_int(width):
        if width < 1:  # type: ignore[operator]
            raise FusionConfigError(f"{name}={width} keeps nothing: write a number of units such as 384, or a share")
    elif isinstance(width, float):
        if not 0.0 < width <= 1.0:
            raise FusionConfigError(
                f"{name}={width} is no share: write a share above 0 and at most 1, such as 0.25, "
                "or an integer for a number of units"
            )
    else:
        raise FusionConfigError(f"{name} must be a number of units (384) or a share (0.25), not {width!r}")
