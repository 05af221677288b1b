"""Single files of a model folder or Hub repository, found without loading anything."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import BrokenCheckpointError, FusionConfigError

__all__ = ["check_exists", "check_readable", "files_like", "is_repo_id", "locate_file"]


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
        FusionConfigError: There is no such folder, and it can be no Hub id.
    """
    if not name_or_path.strip():
        raise FusionConfigError("no model is named: give a model folder or a Hub id such as gpt2")
    looks_like_path = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    if not os.path.isdir(name_or_path) and (looks_like_path or os.path.exists(name_or_path)):
        raise FusionConfigError(f"{name_or_path}: no such folder; give a model folder or a Hub id such as gpt2")
    if not os.path.isdir(name_or_path) and not is_repo_id(name_or_path):
        raise FusionConfigError(
            f"{name_or_path!r} is no folder, and can be no Hub id: give a model folder or a Hub id such as gpt2"
        )


def is_repo_id(name: str) -> bool:
    """Whether a name can be that of a repository on the Hub: `name` or `owner/name`.

    Args:
        name: The name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def files_like(name_or_path: str, pattern: str) -> list[str]:
    """The files of a folder that have some name, sorted; of a Hub id they are not known, and none.

    Args:
        name_or_path: A folder or a Hub id.
        pattern: The name, with `*`.
    """
    return sorted(path.name for path in Path(name_or_path).glob(pattern)) if os.path.isdir(name_or_path) else []


def check_readable(name_or_path: str | Path, pattern: str) -> None:
    """Checks that the files of a folder may be read: safetensors says of those that may not that they are not there.

    Args:
        name_or_path: A folder, or a Hub id, of which nothing is checked.
        pattern: The files' names, with `*`.

    Raises:
        BrokenCheckpointError: One of them may not.
    """
    for path in Path(name_or_path).glob(pattern) if os.path.isdir(name_or_path) else ():
        if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            raise BrokenCheckpointError(f"{path} may not be read: give yourself permission (chmod u+r)")
