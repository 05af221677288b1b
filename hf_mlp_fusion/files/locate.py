"""Single files of a model folder or Hub repository, found without loading anything."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import FusionConfigError

__all__ = ["check_exists", "is_dataset_id", "locate_file"]


def locate_file(name_or_path: str, filename: str) -> Path | None:
    """Finds a file of a model folder or Hub repository; None where it has none of that name.

    Raises:
        FusionConfigError: There is no such folder or repository.
    """
    check_exists(name_or_path)
    if os.path.isdir(name_or_path):
        path = Path(name_or_path) / filename
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name_or_path, filename))
    except LocalEntryNotFoundError as error:
        raise FusionConfigError(f"{name_or_path}: no such folder, and the Hub cannot be reached") from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError) as error:
        raise FusionConfigError(
            f"{name_or_path} could not be fetched: {str(error).strip().splitlines()[0]}"
        ) from error


def check_exists(name_or_path: str) -> None:
    """Tells a mistyped path from a Hub id before anything is looked up on the network.

    Args:
        name_or_path: A folder or a Hub id.

    Raises:
        FusionConfigError: It is no folder and no Hub id.
    """
    if not os.path.isdir(name_or_path) and (os.path.exists(name_or_path) or not _is_repo_id(name_or_path)):
        raise FusionConfigError(f"{name_or_path!r}: no such folder; give a model folder or a Hub id such as gpt2")


def is_dataset_id(name: str) -> bool:
    """Whether a name can be that of a data set on the Hub: `owner/name`, perhaps its configuration behind a colon.

    A single word is more likely a mistyped file, whose name is nobody's business.

    Args:
        name: The name.
    """
    repo_id = name.partition(":")[0]
    return repo_id.count("/") == 1 and _is_repo_id(repo_id) and not Path(repo_id).suffix[1:].isalpha()


def _is_repo_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return bool(name) and not name.startswith((".", "~"))
