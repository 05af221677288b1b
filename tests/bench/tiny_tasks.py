"""Tiny models and tiny tasks, in folders as the bench reads them."""

from pathlib import Path

from conftest import tiny_model
from datasets import Dataset
from tiny_text import tiny_texts, tiny_tokenizer


def fill(root: Path) -> Path:
    """Fills a folder: a tiny model of each family, and `data`, which holds tiny tasks."""
    for family in ("roberta", "gpt2", "switch_transformers"):
        tiny_model(family).save_pretrained(root / family)
        tiny_tokenizer(family).save_pretrained(root / family)
    texts = tiny_texts(60)
    pairs = {"sentence1": texts, "sentence2": texts[::-1], "label": [index % 2 for index in range(60)]}
    tasks = {
        "sst2": {"sentence": texts, "label": pairs["label"]},
        "mrpc": pairs,
        "stsb": pairs | {"label": [index / 12 for index in range(60)]},
    }
    for task, rows in tasks.items():
        (root / "data" / task).mkdir(parents=True)
        for split, start in (("train", 0), ("validation", 40)):
            part = Dataset.from_dict({name: values[start : start + 40] for name, values in rows.items()})
            part.to_parquet(root / "data" / task / f"{split}.parquet")
    return root
