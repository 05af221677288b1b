"""Texts in, batches of token ids out: what measures (and calibrations) run a model on."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DataError
from ..files import check_exists
from .hub_datasets import load_hub_dataset

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Batch",
    "load_tokenizer",
    "pad_batch",
    "padded_batches",
    "read_texts",
    "special_tokens",
    "split_texts",
    "text_column",
    "token_rows",
    "token_windows",
    "tokenizer_of",
]

Batch = dict[str, Tensor]
"""Arguments of a model's forward, each `[batch, tokens]`; `labels`, where there, are -100 where none counts."""

_BUILDERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
_SPACE = "▁"  # the one word of a T5 tokenizer without a vocabulary
_COLUMNS = ("text", "sentence", "sentence1", "content")


def read_texts(source: str | Path, *, column: str | None = None, split: str = "train") -> list[str]:
    """Reads texts from a file, or from a data set on the Hub or in its cache.

    Args:
        source: A `.parquet`, `.csv`, `.json` or `.jsonl` file with a column of texts, any other file with a text a
            line, or, if a string, the name of a data set (`"nyu-mll/glue:sst2"`, its configuration behind a colon).
        column: The column of texts; if not given, the first of `text`, `sentence`, `sentence1`, `content`.
        split: The split of a data set; files have none.

    Returns:
        The texts in their order, blank ones left out.

    Raises:
        DataError: There is no such file or data set, no such column, or no text in it.
    """
    path = Path(source)
    if path.is_file() and path.suffix not in _BUILDERS:
        try:
            lines: Iterable[object] = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text: convert it, or give a parquet, csv or json file") from error
    else:
        lines = _column(source, path, column, split)
    texts = [text.strip() for text in lines if isinstance(text, str) and text.strip()]
    if not texts:
        raise DataError(f"{source} holds no text")
    return texts


def _column(source: str | Path, path: Path, column: str | None, split: str) -> Sequence[object]:
    from datasets import load_dataset

    with tempfile.TemporaryDirectory() as cache:
        if path.is_file():
            if not path.stat().st_size:
                raise DataError(f"{source} holds no text")
            try:
                builder = _BUILDERS[path.suffix]
                table: Any = load_dataset(builder, data_files=str(path), split="train", cache_dir=cache)
            except Exception as error:  # `datasets` raises a dozen kinds, what it met behind them
                cause: BaseException = error
                while cause.__cause__ is not None:
                    cause = cause.__cause__
                fault = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
                raise DataError(f"{source} is no {path.suffix[1:]} that can be read: {fault:.200}") from error
        elif path.is_dir():
            raise DataError(f"{source} is a folder: give a file of texts in it")
        elif isinstance(source, Path) or path.is_absolute():
            raise DataError(f"no texts could be read from {source}: there is no such file")
        else:
            table = load_hub_dataset(source, split=split)
        return list(table[text_column(table.column_names, column, source)])


def text_column(names: Sequence[str], wanted: str | None = None, source: object = "the data set") -> str:
    """Chooses the column of texts.

    Args:
        names: The columns that there are.
        wanted: The column to take; if not given, the first of `text`, `sentence`, `sentence1`, `content`.
        source: What has these columns, for the message.

    Raises:
        DataError: There is no such column.
    """
    column = wanted or next((name for name in _COLUMNS if name in names), None)
    if column is None or column not in names:
        missing = f"column {column!r}" if column else "column of texts"
        raise DataError(f"{source} has no {missing}; name one of its columns (--column, column=): {', '.join(names)}")
    return column


def load_tokenizer(name_or_path: str) -> Any:
    """Loads the tokenizer that lies beside a model.

    Args:
        name_or_path: Folder or Hub id of the model.

    Raises:
        DataError: There is none. transformers would make one up, without a vocabulary.
        FusionConfigError: There is no such folder, and no such repository can be.
    """
    from transformers import AutoTokenizer

    check_exists(name_or_path)
    mend = "save the tokenizer beside the model, or in Python pass tokenizer="
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # of transformers, tokenizers and sentencepiece: a dozen kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{name_or_path} has no tokenizer that could be loaded, and texts need one ({lines[0]:.200}): {mend}"
        ) from error
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    if set(tokenizer.get_vocab()) - added - set(tokenizer.all_special_tokens) <= {_SPACE}:
        raise DataError(f"{name_or_path} has no tokenizer, and texts need one: {mend}")
    return tokenizer


def tokenizer_of(model: PreTrainedModel) -> Any:
    """Loads the tokenizer of a model by the name that the model was loaded by.

    A revision, a subfolder or a cache that it was loaded with is noted nowhere.

    Args:
        model: The model.

    Raises:
        DataError: It was not loaded from anywhere, or there is no tokenizer.
    """
    place = model.config.name_or_path
    if not place:
        raise DataError(
            "texts need a tokenizer, and the model was not loaded from a place that may have it: pass tokenizer="
        )
    return load_tokenizer(place)


def split_texts(texts: Sequence[str], held_out: float = 0.1) -> tuple[list[str], list[str]]:
    """Splits texts by a hash of each, so that a text falls on the same side whatever file it comes in.

    Args:
        texts: The texts.
        held_out: Share to hold out, 0 to 1.

    Returns:
        The texts to train or calibrate on, and those held out.
    """
    parts: tuple[list[str], list[str]] = ([], [])
    for text in texts:
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        parts[int.from_bytes(digest, "big") < held_out * 2**64].append(text)
    return parts


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and behind a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


def token_rows(texts: Iterable[str], tokenizer: Any, max_length: int) -> Iterator[list[int]]:
    """Yields each text as a row of tokens, special ones included, cut at `max_length`."""
    prefix, suffix = special_tokens(tokenizer)
    room = max_length - len(prefix) - len(suffix)
    for text in texts:
        yield prefix + tokenizer(text, add_special_tokens=False)["input_ids"][:room] + suffix


def token_windows(texts: Iterable[str], tokenizer: Any, max_length: int) -> Iterator[list[int]]:
    """Yields rows of exactly `max_length` tokens cut from the texts end to end, as language models are trained.

    Texts are parted by the end-of-text token where the tokenizer has one; a rest that fills no window is left out,
    unless it is all there is.
    """
    prefix, suffix = special_tokens(tokenizer)
    room = max_length - len(prefix) - len(suffix)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    waiting: list[int] = []
    found = False
    for text in texts:
        waiting += tokenizer(text, add_special_tokens=False)["input_ids"] + end
        while len(waiting) >= room:
            yield prefix + waiting[:room] + suffix
            waiting, found = waiting[room:], True
    if waiting and not found:
        yield prefix + waiting + suffix


def padded_batches(rows: Sequence[Mapping[str, Sequence[int]]], padding: int, batch_size: int = 16) -> list[Batch]:
    """Batches of rows, those of like length together, for they pad least.

    Args:
        rows: Each with `input_ids` and perhaps `labels`, token ids.
        padding: What to pad `input_ids` with; labels are padded with -100.
        batch_size: Rows of a batch.

    Returns:
        Batches of `input_ids`, `attention_mask` and, where the rows have them, `labels`, each `[batch, tokens]`.
    """
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    batches = []
    for start in range(0, len(ordered), batch_size):
        chunk = ordered[start : start + batch_size]
        ids, mask = pad_batch([row["input_ids"] for row in chunk], padding)
        batch = {"input_ids": ids, "attention_mask": mask}
        if "labels" in chunk[0]:
            batch["labels"], _ = pad_batch([row["labels"] for row in chunk], -100)
        batches.append(batch)
    return batches


def pad_batch(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Pads rows of tokens on the right to one length.

    Args:
        rows: Token ids.
        padding: What to pad with.

    Returns:
        Token ids and attention mask (1 for tokens, 0 for padding), each `[len(rows), longest row]`, int64.
    """
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), padding, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[index, : len(row)] = 1
    return ids, mask
