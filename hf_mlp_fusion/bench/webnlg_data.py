"""WebNLG (triples to text) for a causal language model: reads it, writes triples as a line, makes rows of tokens.

A training row is `<eos> triples newline text <eos>`, and a prompt its part before the text. Prefix-tuning and LoRA
have the triples raw (`Aarhus_Airport : cityServed : "Aarhus, Denmark"`) and the end token before the text. A small
GPT-2 that was never trained on the task finds texts 1.3 nats a token likelier in the form used here (gpt2-mini, 150
items of the validation split: 4.46 to 3.16): it starts anew at an end token, and knows plain words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import Batch, load_hub_dataset, pad_batch
from ..errors import DataError

__all__ = ["WebNLGItem", "linearise", "prompt_batch", "read_webnlg", "training_rows"]

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class WebNLGItem:
    """Triples to put in words, and texts that do.

    Attributes:
        category: What the triples are about, such as `"Airport"`.
        triples: One or more `"subject | predicate | object"`.
        references: One or more texts.
    """

    category: str
    triples: tuple[str, ...]
    references: tuple[str, ...]


def read_webnlg(source: str | Path) -> dict[str, list[WebNLGItem]]:
    """Reads the splits of WebNLG.

    Args:
        source: A folder with a parquet file a split, or the name of a data set on the Hub or in its cache (its
            configuration behind a colon), with the columns `category`, `triples` and `references`.

    Returns:
        The splits `train`, `validation`, `test`, and what else there is. Where `test_seen` and `test_unseen` are not
        there, they are made: the items of `test` whose category `train` has, and the others.

    Raises:
        DataError: There is no such data, or a split or a column is missing, or a row is not as it should be.
    """
    tables = _folder(Path(source)) if Path(source).is_dir() else _hub(str(source))
    missing = [split for split in _SPLITS if split not in tables]
    if missing:
        raise DataError(f"{source} has no {' and no '.join(missing)} split; it has {', '.join(tables) or 'none'}")
    splits = {split: _items(rows, f"{split} of {source}") for split, rows in tables.items()}
    seen = {item.category for item in splits["train"]}
    splits.setdefault("test_seen", [item for item in splits["test"] if item.category in seen])
    splits.setdefault("test_unseen", [item for item in splits["test"] if item.category not in seen])
    return splits


def _folder(folder: Path) -> dict[str, list[dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    try:
        return {path.stem: parquet.read_table(path).to_pylist() for path in sorted(folder.glob("*.parquet"))}
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"a parquet file of {folder} could not be read: {str(error).splitlines()[0]:.200}") from error


def _hub(source: str) -> dict[str, list[dict[str, Any]]]:
    try:
        return {str(split): table.to_list() for split, table in load_hub_dataset(source).items()}
    except DataError as error:
        raise DataError(f"WebNLG could not be read from {source}, which is no folder: {error}") from error


def _items(rows: list[dict[str, Any]], source: str) -> list[WebNLGItem]:
    for index, row in enumerate(rows):
        missing = {"category", "triples", "references"} - set(row)
        if missing:
            raise DataError(f"{source} has no column {', '.join(sorted(missing))}; its columns are {', '.join(row)}")
        if not row["references"] or not row["triples"]:
            raise DataError(f"row {index} of {source} has no triple or no reference")
        for triple in row["triples"]:
            if triple.count(" | ") != 2:
                raise DataError(f"row {index} of {source} has a triple not of the form 'a | b | c': {triple!r:.100}")
    return [WebNLGItem(row["category"], tuple(row["triples"]), tuple(row["references"])) for row in rows]


def linearise(triples: Iterable[str]) -> str:
    """Writes triples as one line of plain words.

    Underscores become spaces, quotation marks are dropped, and predicates (`cityServed`) are parted into words, which
    are known even where a category was never trained on.

    Args:
        triples: `"subject | predicate | object"` each.

    Example:
        >>> linearise(['Aarhus_Airport | cityServed | "Aarhus, Denmark"', "Aarhus | leader | Jacob_Bundsgaard"])
        'Aarhus Airport : city served : Aarhus, Denmark | Aarhus : leader : Jacob Bundsgaard'
    """
    lines = []
    for triple in triples:
        subject, predicate, thing = (part.replace("_", " ").replace('"', "") for part in triple.split(" | "))
        words = re.sub(r"(?<=[a-z])[A-Z]", lambda capital: f" {capital[0].lower()}", predicate)
        lines.append(f"{subject} : {words} : {thing}")
    return " | ".join(lines)


def _end(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end token, which tells where a text ends: set tokenizer.eos_token")
    return int(tokenizer.eos_token_id)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _prompt(item: WebNLGItem, tokenizer: Any) -> list[int]:
    return _tokens(tokenizer, f"{linearise(item.triples)}\n")


def training_rows(items: Iterable[WebNLGItem], tokenizer: Any, max_length: int) -> list[dict[str, list[int]]]:
    """Makes a row of tokens of each reference, of which the text and the end token are to be predicted.

    Args:
        items: The items.
        tokenizer: The tokenizer of a causal language model.
        max_length: Tokens of a row, at most. What is too long loses triples' tokens at the left, then text's at the
            right (and with them the end token). WebNLG's longest row has 263 of gpt2-mini's tokens, 225 of GPT-2's.

    Returns:
        `input_ids` and `labels` (-100 on the prompt) of each row, as `DataCollatorForSeq2Seq` pads them.

    Raises:
        DataError: The tokenizer has no end token.
    """
    end = _end(tokenizer)
    rows = []
    for item in items:
        whole = _prompt(item, tokenizer)
        for reference in item.references:
            target = [*_tokens(tokenizer, reference), end][: max_length - 1]
            prompt = [end, *_last(whole, max_length - 1 - len(target))]
            rows.append({"input_ids": prompt + target, "labels": [-100] * len(prompt) + target})
    return rows


def prompt_batch(items: Sequence[WebNLGItem], tokenizer: Any, max_length: int) -> Batch:
    """Makes a batch of prompts to generate from, padded on the left, so that all texts start in the same column.

    Args:
        items: One or more items.
        tokenizer: The tokenizer of a causal language model.
        max_length: Tokens of a prompt, at most: what the model takes, less what it is to generate. Longer ones lose
            tokens at the left.

    Returns:
        `input_ids` and `attention_mask` for `generate`, each `[len(items), longest prompt]`.

    Raises:
        DataError: The tokenizer has no end token.

    Example:
        >>> batch = prompt_batch(items, tokenizer, 384)  # doctest: +SKIP
        >>> ids = model.generate(**batch, max_new_tokens=128, pad_token_id=tokenizer.eos_token_id)  # doctest: +SKIP
        >>> new = ids[:, batch["input_ids"].shape[1] :]  # doctest: +SKIP
        >>> texts = tokenizer.batch_decode(new, skip_special_tokens=True)  # doctest: +SKIP
    """
    end = _end(tokenizer)
    rows = [[end, *_last(_prompt(item, tokenizer), max_length - 1)] for item in items]
    ids, mask = pad_batch([row[::-1] for row in rows], end)
    return {"input_ids": ids.flip(1), "attention_mask": mask.flip(1)}


def _last(tokens: list[int], count: int) -> list[int]:
    return tokens[max(0, len(tokens) - count) :]
