"""Pushing a fused folder to the Hub: checked first, then in one commit, so that no repository is ever half a model."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (  # type: ignore[attr-defined] # HTTPError: see `compat`
    EntryNotFoundError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import safe_open

from ..errors import BrokenCheckpointError, FusionConfigError, FusionError, HubError
from ..files import is_repo_id
from ..tensors import check_cluster_sizes
from .cards import CARD_NAME, card_files, read_readme
from .files import WEIGHTS, sort_files
from .headers import check_stored_ffns, stored_tensors
from .picture import PICTURE_NAME
from .saved import SavedModel, read_saved, saved_family
from .stub import STUB_NAME, config_text, stub_text, with_stub, without_stub

__all__ = ["Push", "check_folder", "hub_errors", "push_folder"]


@dataclass(frozen=True)
class Push:
    """What a push did, or would do.

    Args:
        repo_id: The repository, with its owner.
        revision: The branch.
        commit: The commit; None where nothing was pushed.
        url: Where to look at it.
        uploaded: Paths in the repository of all files pushed.
        left: What of the folder was left out.
    """

    repo_id: str
    revision: str
    commit: str | None
    url: str | None
    uploaded: list[str]
    left: list[str]


def check_folder(folder: Path) -> SavedModel:
    """Checks that a fused folder will load: config, receipt, headers and every P, but no weight is read.

    Args:
        folder: The folder.

    Raises:
        BrokenCheckpointError: It will not, and why.
    """
    saved = read_saved(str(folder))
    if saved.config.get("transformers_weights") is not None:
        raise BrokenCheckpointError(
            f"{folder} keeps its weights in a file of its own naming (transformers_weights in config.json): load the "
            "model and save it anew, then push that"
        )
    scalings = check_stored_ffns(
        stored_tensors(folder, {}),
        saved.section,
        saved_family(saved.config),
        quantized="quantization_config" in saved.config,
    )
    for name, stored in scalings.items():
        with safe_open(stored.file, framework="pt") as file:
            check_cluster_sizes(file.get_tensor(stored.name), saved.section.ffns[name].original_width, stored.name)
    return saved


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    license: str | None = None,
    license_note: str = "",
    base_model: str | None = None,
    remote_code: bool = True,
    dry_run: bool = False,
) -> Push:
    """Pushes a fused folder to the Hub in one commit: weights, config, tokenizer, receipt and card.

    The card is made, or the part on fusion added to the README that is there. Weights of an earlier push that this one
    does not replace go in the same commit.

    Args:
        folder: A folder that `save_pretrained` or `hf-mlp-fusion fuse` wrote. It is not changed.
        repo_id: The repository, `name` or `owner/name`; it is made if it is not there.
        private: Make the repository private. One that is there and public is refused.
        revision: The branch, made if it is not there; `"main"` if not given.
        message: The commit's message.
        license: The licence, as the Hub calls it; if not given, that in the README, or in the base model's card.
        license_note: A sentence on the licence.
        base_model: Hub id of the model that was fused; if not given, that in the README, or in the receipt.
        remote_code: Push the stub too, by which `trust_remote_code=True` replaces `import hf_mlp_fusion`.
        dry_run: Check everything, but push nothing.

    Returns:
        What was done.

    Raises:
        BrokenCheckpointError: The folder is no fused model, would not load, or holds pickles.
        FusionConfigError: The licence or the base model is not known.
        HubError: The Hub refused, or could not be reached.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FusionConfigError(f"{folder}: no such folder; name one that `hf-mlp-fusion fuse` wrote")
    if not is_repo_id(repo_id):
        raise FusionConfigError(
            f"{repo_id!r} can be no repository on the Hub: name it owner/name, of letters, digits, -, _ and ."
        )
    saved = check_folder(folder)
    files = sort_files(folder)
    contents: dict[str, Path | bytes] = {name: folder / name for name in files.uploaded}
    config = with_stub(saved.config) if remote_code else without_stub(saved.config)
    if config != saved.config:
        contents["config.json"] = config_text(config).encode()
    if remote_code:
        contents[STUB_NAME] = stub_text().encode()
    api = HfApi()
    readme = read_readme(folder / CARD_NAME)
    if not dry_run:
        with hub_errors(repo_id, (Exception,)):
            if "/" not in repo_id:
                repo_id = f"{api.whoami()['name']}/{repo_id}"
            if readme is None:
                readme = _remote_readme(api, repo_id, revision)
    card = card_files(saved, repo_id, readme, license=license, license_note=license_note, base_model=base_model)
    contents[CARD_NAME] = card.readme.encode()
    if card.picture is not None:
        contents[PICTURE_NAME] = card.picture
    names = sorted(contents)
    left = [name for name in files.left if name not in contents]
    if dry_run:
        return Push(repo_id, revision or "main", None, None, names, left)
    with hub_errors(repo_id, (Exception,)):  # of huggingface_hub and httpx: a dozen kinds
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise HubError(f"{repo_id} is public already: make it private on the Hub, or leave --private out")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        stale = {
            name
            for name in api.list_repo_files(repo_id, revision=revision)
            if name not in contents and any(fnmatchcase(name, pattern) for pattern in WEIGHTS)
        }
        done = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, contents[name]) for name in names),
                *(CommitOperationDelete(name) for name in sorted(stale)),
            ],
            commit_message=message or "Upload fused model",
            revision=revision,
        )
    return Push(repo_id, revision or "main", done.oid, done.commit_url, names, left)


def _remote_readme(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    """The README that a repository has already: what its owner wrote there is kept."""
    try:
        return read_readme(Path(api.hf_hub_download(repo_id, CARD_NAME, revision=revision)))
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
        return None


@contextlib.contextmanager
def hub_errors(repo_id: str, kinds: tuple[type[Exception], ...] = (HTTPError, OSError)) -> Iterator[None]:
    """Turns what goes wrong on the way into one line without the token, which a server may have echoed.

    Args:
        repo_id: Where to.
        kinds: What is taken for such: errors of the network, of the Hub, and of files.

    Raises:
        HubError: Something did.
    """
    try:
        yield
    except FusionError:
        raise
    except kinds as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = _without_token("; ".join(lines[:3]) or type(error).__name__)
        hint = ""
        if "401" in text or get_token() is None:
            hint = ". Log in with `hf auth login`, or set HF_TOKEN to a token that may write"
        # Not chained: the original error may show the token.
        raise HubError(f"{repo_id} could not be pushed to, and no file there was changed: {text}{hint}") from None


def _without_token(text: str) -> str:
    if token := get_token():
        text = text.replace(token, "***")
    return re.sub(r"(?i)hf_[a-z0-9]{16,}|bearer +\S+", "***", text)
