"""WordNet 3.0 as Debian installs it, for nltk."""

from __future__ import annotations

import functools
import io
import os
import warnings
from pathlib import Path
from typing import Any

import nltk.data
from nltk.corpus.reader.wordnet import WordNetCorpusReader

from ..errors import DataError

__all__ = ["read_wordnet"]

_DEBIAN = "/usr/share/wordnet"


class _DebianWordNet(WordNetCorpusReader):
    """Reads the database without two things of nltk's own copy, which METEOR has no use for."""

    def open(self, file: str) -> Any:
        """Opens a file of the database, and for the missing `lexnames` 45 numbers in place of the 45 names."""
        if file == "lexnames":
            return io.StringIO("".join(f"{number:02d} {number:02d} 0\n" for number in range(45)))
        return super().open(file)

    def map_wn(self, version: str = "wordnet") -> None:
        """Maps nothing: this is the WordNet 3.0 that nltk would map to, by an `index.sense` that is missing here."""


def read_wordnet() -> WordNetCorpusReader:
    """Reads WordNet from the folder in `WNSEARCHDIR`, WordNet's own variable, or where Debian has it; once a process.

    Raises:
        DataError: There is no WordNet.
    """
    return _read(os.environ.get("WNSEARCHDIR", _DEBIAN))


@functools.cache
def _read(folder: str) -> WordNetCorpusReader:
    if not (Path(folder) / "data.noun").is_file():
        raise DataError(
            f"METEOR needs WordNet, and {folder} has none: run `apt install wordnet-base`, set WNSEARCHDIR to its "
            "folder, or use meteor_exact_stem"
        )
    if folder not in nltk.data.path:
        nltk.data.path.append(folder)  # nltk reads corpora only from folders listed here
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The multilingual functions are not available")
        return _DebianWordNet(folder, None)
