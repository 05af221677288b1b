"""Cards of fused folders: made from what lies there, what is missing asked for, and written beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..errors import BrokenCheckpointError, FusionConfigError
from ..files import write_bytes, write_text
from .card import FusionCard
from .licences import check_licence
from .measured import Measured
from .picture import PICTURE_NAME, picture_bytes
from .provenance import LARGEST_CARD, base_model_of, licence_of
from .saved import SavedModel, read_saved
from .side_files import check_inside

__all__ = ["CARD_NAME", "CardFiles", "card_files", "read_readme", "write_card"]

CARD_NAME = "README.md"


@dataclass(frozen=True)
class CardFiles:
    """A card and its picture.

    Args:
        readme: The text of `README.md`.
        picture: The picture `fusion_errors.png`, where there is one.
    """

    readme: str
    picture: bytes | None

    def save(self, folder: Path) -> None:
        """Writes both into a folder, each whole or not at all."""
        if self.picture is not None:
            write_bytes(folder / PICTURE_NAME, self.picture)
        write_text(folder / CARD_NAME, self.readme)


def card_files(
    saved: SavedModel,
    name: str,
    readme: str | None = None,
    *,
    license: str | None = None,
    license_note: str = "",
    base_model: str | None = None,
    measured: Sequence[Measured] = (),
    ask: bool = True,
) -> CardFiles:
    """Makes the card of a fused model.

    Args:
        saved: Its config and receipt.
        name: What the card calls it: its Hub id, or its folder's name.
        readme: The README that it has already. Its own text stays, unless it is the empty form of `push_to_hub`.
        license: Its licence, as the Hub calls it; if not given, that in `readme`, or in the base model's card.
        license_note: A sentence on the licence.
        base_model: Hub id of the model that was fused; if not given, that in `readme`, or in the receipt.
        measured: Figures to show.
        ask: Whether to raise where licence or base model are not known, instead of leaving them out.

    Raises:
        FusionConfigError: The licence or the base model is not known, or the metadata of `readme` are not legible; or
            the Hub knows no such licence.
    """
    if license:
        check_licence(license)
    known = _metadata(readme, name)
    if readme is not None and _is_form(readme):
        readme = None
    source = saved.report.source.get("name_or_path")
    stated = known.get("base_model")  # a list of several, in a card that others wrote, stays as it is
    base = base_model or (stated if isinstance(stated, str) else None if stated else base_model_of(saved.report))
    licence = {"license": license} if license else {}
    if not licence and not known.get("license"):
        licence = licence_of(base_model) or licence_of(base) or licence_of(source)
    if ask and not (base or stated):
        raise FusionConfigError(
            f"the model that {name} was fused from is not known by a Hub id: add --base-model OWNER/NAME"
        )
    if ask and not (licence or known.get("license")):
        raise FusionConfigError(
            f"the licence of {name} is not known: add --license, most likely that of "
            f"{base or stated} (apache-2.0, mit, other, ...)"
        )
    picture = picture_bytes(saved.report)
    card = FusionCard(
        name=name,
        saved=saved,
        base_model=base,
        licence=licence,
        license_note=license_note,
        measured=measured,
        picture=None if picture is None else PICTURE_NAME,
    )
    return CardFiles(card.merge_into(readme), picture)


def write_card(folder: str | Path, *, name: str | None = None, overwrite: bool = False, **given: Any) -> Path:
    """Writes the card of a fused folder, and its picture.

    A README that is there keeps its own text: the part on fusion is added at its end, or written anew between its
    marks.

    Args:
        folder: The folder.
        name: What the card calls the model: its Hub id; if not given, the folder's name.
        overwrite: Write the whole README anew instead.
        given: What `card_files` takes: `license`, `license_note`, `base_model`, `measured`, `ask`.

    Returns:
        The card's path.

    Raises:
        BrokenCheckpointError: The folder is no fused model, or its README a link that leads out of it.
        FusionConfigError: As `card_files`.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FusionConfigError(f"{folder}: no such folder; name one that `hf-mlp-fusion fuse` wrote")
    path = folder / CARD_NAME
    check_inside(path, folder)
    readme = None if overwrite else read_readme(path)
    card_files(read_saved(str(folder)), name or folder.resolve().name, readme, **given).save(folder)
    return path


def read_readme(path: Path) -> str | None:
    """Reads a README; None where there is none.

    Raises:
        BrokenCheckpointError: It is no text, or too large to be a README.
    """
    if not path.is_file():
        return None
    if path.stat().st_size > LARGEST_CARD:
        raise BrokenCheckpointError(f"{path} is too large: a README has a megabyte at most")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BrokenCheckpointError(f"{path} is not UTF-8 text") from error


def _is_form(readme: str) -> bool:
    """Whether a README is the form that transformers' `push_to_hub` makes where there is none, untouched."""
    form = ModelCard.from_template(ModelCardData(), model_description="\0").text
    before, _, after = form.partition("\0")
    text = ModelCard(readme, ignore_metadata_errors=True).text
    between = text.removeprefix(before).removesuffix(after)
    return len(text) == len(before) + len(between) + len(after) and "\n" not in between


def _metadata(readme: str | None, name: str) -> dict[str, Any]:
    if readme is None or not readme.strip():
        return {}
    try:
        return dict(ModelCard(readme).data.to_dict())
    except Exception as error:  # of yaml, and ValueError
        raise FusionConfigError(
            f"the metadata at the top of the README of {name} are not legible: {str(error).splitlines()[0]}"
        ) from error
