"""Sentences of five data sets to calibrate, heal and measure on: python tests/benchmarks/mixed_texts.py DATA OUT

OUT/train.txt has those of the training splits of SST-2, CoLA, MRPC, STS-B and WebNLG (its references), OUT/eval.txt
those of the validation splits that are not among them; shuffled, each once. DATA has
`TASK/{train,validation}.parquet`.
"""

import random
import sys
from pathlib import Path

import pandas

COLUMNS = ("sentence", "sentence1", "sentence2", "references")


def sentences(data: Path, split: str) -> list[str]:
    """The sentences of a split, each once, shuffled."""
    found = set()
    for task in ("sst2", "cola", "mrpc", "stsb", "webnlg"):
        table = pandas.read_parquet(data / task / f"{split}.parquet")
        for column in table.columns.intersection(COLUMNS):
            texts = table[column].explode()
            found.update(" ".join(text.split()) for text in texts)
    shuffled = sorted(found)
    random.Random(0).shuffle(shuffled)
    return shuffled


if __name__ == "__main__":
    data, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    train = sentences(data, "train")
    known = set(train)
    held_out = [text for text in sentences(data, "validation") if text not in known]
    for name, texts in (("train.txt", train), ("eval.txt", held_out)):
        (out / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
        print(f"{out / name}: {len(texts):,} sentences")
