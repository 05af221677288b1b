"""Where a fused model comes from, as far as can be known: its base model, and that one's licence."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, hf_hub_download

from ..recipe import FusionReport

__all__ = ["LARGEST_CARD", "base_model_of", "licence_of"]

LARGEST_CARD = 2**20  # bytes


def base_model_of(report: FusionReport) -> str | None:
    """The Hub id of the model that was fused; None where it was a folder, whose name means nothing to others.

    Args:
        report: The receipt.
    """
    name = report.source.get("name_or_path")
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name, re.ASCII):
        return None
    return None if os.path.exists(name) else name


def licence_of(name_or_path: object) -> dict[str, str]:
    """Reads a model's licence from its card.

    Args:
        name_or_path: Its folder or Hub id.

    Returns:
        The metadata fields `license`, `license_name` and `license_link`, those that it has; none where the card
        cannot be read.
    """
    if not isinstance(name_or_path, str) or not name_or_path:
        return {}
    try:
        is_folder = os.path.isdir(name_or_path)
        path = Path(name_or_path, "README.md") if is_folder else Path(hf_hub_download(name_or_path, "README.md"))
        if path.stat().st_size > LARGEST_CARD:
            return {}
        data: Mapping[str, Any] = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # no such card, no network, no YAML: whatever it is, the licence is not known
        return {}
    fields = ("license", "license_name", "license_link")
    return {name: data[name] for name in fields if isinstance(data.get(name), str)} if data.get("license") else {}
