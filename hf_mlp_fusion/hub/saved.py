"""What a saved fused model says of itself: its config and its receipt, read and checked without loading anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BrokenCheckpointError
from ..families import FAMILIES, Family
from ..files import locate_file, read_object
from ..recipe import REPORT_NAME, FusionReport, FusionSection

__all__ = ["MODEL_TAG", "SavedModel", "read_saved", "saved_architecture", "saved_family"]

MODEL_TAG = "mlp-fusion"
"""What the Hub finds fused models by. Trainer and PEFT write it into their cards too."""


@dataclass(frozen=True)
class SavedModel:
    """A saved fused model.

    Args:
        config: The values of `config.json`.
        section: Its `mlp_fusion` section.
        report: The receipt.
    """

    config: dict[str, Any]
    section: FusionSection
    report: FusionReport


def read_saved(name_or_path: str) -> SavedModel:
    """Reads config and receipt of a fused folder or repository, and checks that they fit. No code is executed.

    Args:
        name_or_path: The folder or Hub id.

    Raises:
        FusionConfigError: There is no such folder or repository.
        BrokenCheckpointError: It is no fused model, has no receipt, or one that does not fit its config.
    """
    config_file = locate_file(name_or_path, "config.json")
    if config_file is None:
        raise BrokenCheckpointError(f"{name_or_path} is not a model folder: it has no config.json")
    config = read_object(config_file)
    if config.get("mlp_fusion") is None:
        raise BrokenCheckpointError(
            f"{name_or_path} is not a fused model; fuse it with `hf-mlp-fusion fuse {name_or_path} OUT`"
        )
    section = FusionSection.from_dict(config["mlp_fusion"])
    report_file = locate_file(name_or_path, REPORT_NAME)
    if report_file is None:
        raise BrokenCheckpointError(f"{name_or_path} is fused, but its receipt {REPORT_NAME} is missing")
    report = FusionReport.from_file(report_file)
    widths = {section.entry_of(ffn.name): ffn.width for ffn in report.ffns}
    if widths != {name: ffn.width for name, ffn in section.ffns.items()}:
        raise BrokenCheckpointError(f"{report_file} does not fit config.json: it is the receipt of another fusion")
    return SavedModel(config, section, report)


def saved_architecture(config: Mapping[str, Any]) -> str:
    """The class of a saved model; empty where its config names none.

    Args:
        config: The values of its `config.json`.
    """
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def saved_family(config: Mapping[str, Any]) -> Family:
    """The family of a saved fused model.

    Args:
        config: The values of its `config.json`.

    Raises:
        BrokenCheckpointError: Its `model_type` is that of no family.
    """
    model_type = config.get("model_type")
    for family in FAMILIES.values():
        if model_type == f"fused_{family.model_type}":
            return family
    raise BrokenCheckpointError(
        f"config.json has the model_type {model_type!r:.40}, which is no fused family's: "
        "`pip install -U hf_mlp_fusion`, or register the family first (hf_mlp_fusion.register_family)"
    )
