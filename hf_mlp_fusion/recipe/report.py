"""The receipt of a fusion: what became of each FFN, and of the model's size."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import BrokenCheckpointError
from ..files import read_object, write_text

__all__ = ["REPORT_NAME", "FFNReport", "FusionReport", "SkippedFFN", "TuningReport"]

REPORT_NAME = "fusion_report.json"
_LARGEST = 2**63  # of any number in it


@dataclass(frozen=True)
class FFNReport:
    """What fusion did to one FFN.

    Args:
        name: Name within the base model.
        original_width: Hidden units before.
        width: Hidden units after; the rank, where a baseline made it of low rank.
        inertia_share: Share of the units' variance that the clusters lose, 0 (exact) to 1; None, as the next two,
            where a baseline made no clusters.
        largest_cluster: Largest number of units that one unit now stands for.
        singletons: Units that stand for themselves alone.
        parameters_before: Parameters before.
        parameters_after: Parameters after; P, k integers, is not counted.
        seconds: Wall-clock seconds.
        method: `"clusters"` or `"obs"`, and the refit behind a plus; or the baseline.
        tokens: Tokens that it was calibrated on.
        calibration_error: Relative output error ‖y~ - y‖ / ‖y‖ (about the mean) on further rows; None without
            calibration, and where there were too few rows to hold some out.
    """

    name: str
    original_width: int
    width: int
    inertia_share: float | None
    largest_cluster: int | None
    singletons: int | None
    parameters_before: int
    parameters_after: int
    seconds: float
    method: str = "clusters"
    tokens: int = 0
    calibration_error: float | None = None


@dataclass(frozen=True)
class SkippedFFN:
    """An FFN that was left as it was.

    Args:
        name: Name within the base model.
        width: Its hidden units.
        reason: Why it was left.
    """

    name: str
    width: int
    reason: str


@dataclass(frozen=True)
class TuningReport:
    """A tuning of the fused model on the original (`hf_mlp_fusion.training`).

    Args:
        target: What was compared, `"hidden_states"`, `"ffn_outputs"` or `"logits"`.
        teacher: Folder or Hub id of the original.
        steps: Steps of the optimizer.
        batch_size: Rows of a step.
        learning_rate: At the start.
        seed: Seed of the training.
        loss: Mean loss over the steps.
        seconds: Wall-clock seconds.
        error_before: Mean output error of the fused FFNs on held-out texts, where it was measured.
        error_after: The same after tuning.
        trained: What trained: `"ffns"`, the fused FFNs alone, `"ffns+norms"`, `"body"` or `"all"`.
        divergence_before: KL(original ‖ fused) on held-out texts, in nats an item, where logits were compared.
        divergence_after: The same after tuning.
        loss_original: Loss of the original language model on held-out texts, in nats a token, where it was measured.
        loss_before: That of the fused one.
        loss_after: The same after tuning.
    """

    target: str
    teacher: str
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    loss: float
    seconds: float
    error_before: float | None = None
    error_after: float | None = None
    trained: str = "ffns"
    divergence_before: float | None = None
    divergence_after: float | None = None
    loss_original: float | None = None
    loss_before: float | None = None
    loss_after: float | None = None


@dataclass(frozen=True)
class FusionReport:
    """The receipt, saved as `fusion_report.json` beside the weights.

    Args:
        recipe: The `FusionConfig`, as its `to_dict` gives it.
        source: The model that was fused: `name_or_path`, `model_type`, `architecture`, `dtype`.
        ffns: The fused FFNs.
        skipped: The FFNs left as they were. No FFN is in neither list.
        parameters_before: Parameters of the whole model, tied ones counted once.
        parameters_after: The same after fusion.
        bytes_before: Bytes of parameters and buffers.
        bytes_after: The same after fusion, P included.
        ffn_parameters: Parameters of all FFNs, before fusion.
        fused_share: Share of `ffn_parameters` in FFNs that were fused.
        seconds: Wall-clock seconds of the whole fusion.
        warnings: What the user was warned of.
        versions: Versions of hf_mlp_fusion, transformers and torch.
        tuning: Each tuning since. What the other fields say of errors is older.
    """

    recipe: dict[str, Any]
    source: dict[str, Any]
    ffns: list[FFNReport]
    skipped: list[SkippedFFN]
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    ffn_parameters: int
    fused_share: float
    seconds: float
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    tuning: list[TuningReport] = field(default_factory=list)

    @property
    def skipped_names(self) -> dict[str, list[str]]:
        """Names of the skipped FFNs by the reason that they were skipped for."""
        names: dict[str, list[str]] = {}
        for item in self.skipped:
            names.setdefault(item.reason, []).append(item.name)
        return names

    def to_dict(self) -> dict[str, Any]:
        """Returns the receipt as plain JSON values."""
        return asdict(self)

    def to_json(self) -> str:
        """Returns the receipt as a JSON object."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FusionReport:
        """Reads what `to_dict` wrote.

        Raises:
            BrokenCheckpointError: It is no receipt.
        """
        values = dict(_checked(cls, values))
        for name in ("source", "versions"):
            if not all(value is None or isinstance(value, str) for value in values.get(name, {}).values()):
                raise BrokenCheckpointError(f"{cls.__name__}: {name} must hold names only")
        values["ffns"] = [FFNReport(**_checked(FFNReport, item)) for item in values["ffns"]]
        values["skipped"] = [SkippedFFN(**_checked(SkippedFFN, item)) for item in values["skipped"]]
        values["tuning"] = [TuningReport(**_checked(TuningReport, item)) for item in values.get("tuning", [])]
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path) -> FusionReport:
        """Reads a receipt from a file.

        Raises:
            BrokenCheckpointError: It is no receipt.
        """
        values = read_object(path)
        try:
            return cls.from_dict(values)
        except BrokenCheckpointError as error:
            raise BrokenCheckpointError(f"{path}: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Writes `fusion_report.json` into a folder, whole or not at all."""
        write_text(Path(folder) / REPORT_NAME, self.to_json())


# The JSON types of the annotations used above, by their first word.
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "dict": (Mapping,),
    "list": (list,),
}


def _checked(cls: type, values: object) -> Mapping[str, Any]:
    """Checks names and JSON types of a dataclass's fields."""
    if not isinstance(values, Mapping):
        raise BrokenCheckpointError(f"{cls.__name__}: expected an object, found {type(values).__name__}")
    known = {item.name: item for item in fields(cls)}
    for name, value in values.items():
        if name not in known:
            raise BrokenCheckpointError(f"{cls.__name__}: unknown field {name!r}; written by a newer hf_mlp_fusion?")
        wanted = _TYPES[re.split(r"\W", str(known[name].type))[0]]
        if value is None and str(known[name].type).endswith("| None"):
            continue
        in_range = not isinstance(value, int | float) or -_LARGEST < value < _LARGEST  # which NaN is not either
        if not isinstance(value, wanted) or isinstance(value, bool) or not in_range:
            raise BrokenCheckpointError(f"{cls.__name__}: {name} must be {known[name].type}, not {value!r:.60}")
    for name, item in known.items():
        if name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise BrokenCheckpointError(f"{cls.__name__}: {name!r} is missing")
    return values
