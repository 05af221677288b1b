"""WebNLG for causal language models: read, written as a line, made into rows and prompts."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from datasets import Dataset
from tiny_text import tiny_tokenizer
from transformers import AutoTokenizer, DataCollatorForSeq2Seq

from hf_mlp_fusion.bench.webnlg_data import WebNLGItem, linearise, prompt_batch, read_webnlg, training_rows
from hf_mlp_fusion.errors import DataError

ITEMS = [
    WebNLGItem("Airport", ("w1 | w2W3 | w4",), ("w5 w6", "w7")),
    WebNLGItem("Airport", ("w1 | w2 | w3", "w1_w2 | w8 | w9"), ("w10 w11 w12",)),
]
SPLITS = {
    "train": [("Airport", "a | b | c"), ("Food", "d | e | f")],
    "validation": [("Food", "a | b | c")],
    "test": [("Food", "g | h | i"), ("Artist", "j | k | l"), ("Airport", "m | n | o")],
}


def write(folder, splits):
    for split, rows in splits.items():
        table = {
            "category": [category for category, _ in rows],
            "triples": [[triple] for _, triple in rows],
            "references": [["A text.", "Another."] for _ in rows],
        }
        Dataset.from_dict(table).to_parquet(str(folder / f"{split}.parquet"))
    return folder


def test_read_tells_seen_categories_by_the_training_split(tmp_path):
    splits = read_webnlg(write(tmp_path, SPLITS))
    assert {name: len(items) for name, items in splits.items() if name in SPLITS} == {
        "train": 2,
        "validation": 1,
        "test": 3,
    }
    assert splits["train"][1] == WebNLGItem("Food", ("d | e | f",), ("A text.", "Another."))
    assert [item.triples for item in splits["test_seen"]] == [("g | h | i",), ("m | n | o",)]
    assert [item.category for item in splits["test_unseen"]] == ["Artist"]


def test_read_takes_seen_and_unseen_from_their_files(tmp_path):
    splits = read_webnlg(str(write(tmp_path, SPLITS | {"test_unseen": [("Food", "x | y | z")]})))
    assert [item.triples for item in splits["test_unseen"]] == [("x | y | z",)]
    assert len(splits["test_seen"]) == 2


def test_unusable_data_is_refused_with_one_line(tmp_path):
    def folder(name, splits):
        (tmp_path / name).mkdir()
        return write(tmp_path / name, splits)

    broken, columns = folder("broken", SPLITS), folder("columns", SPLITS)
    (broken / "test.parquet").write_bytes(b"no parquet")
    Dataset.from_dict({"category": ["a"], "text": ["b"]}).to_parquet(str(columns / "test.parquet"))
    empty = folder("empty", SPLITS)
    Dataset.from_dict({"category": ["a"], "triples": [["a | b | c"]], "references": [[]]}).to_parquet(
        str(empty / "validation.parquet")
    )
    for source, message in (
        (tmp_path / "none", "could not be read from .*no folder"),
        (folder("less", {"train": SPLITS["train"]}), "no validation and no test split; it has train"),
        (broken, "could not be read"),
        (columns, "no column references, triples; its columns are category, text"),
        (empty, "row 0 of validation .* no reference"),
        (folder("pairs", SPLITS | {"test": [("Food", "a | b")]}), "row 0 of test .* 'a | b'"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            read_webnlg(source)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("triple", "line"),
    [
        ('Aarhus_Airport | cityServed | "Aarhus, Denmark"', "Aarhus Airport : city served : Aarhus, Denmark"),
        ("A | elevationAboveTheSeaLevel_(in_metres) | 25.0", "A : elevation above the sea level (in metres) : 25.0"),
        ('A | runtime | "52.0"(minutes)', "A : runtime : 52.0(minutes)"),
        ("A | name | one_|_two", "A : name : one | two"),
        ("A | ISBN_number | 1", "A : ISBN number : 1"),
        ("iPhone | was a crew member of | NASA", "iPhone : was a crew member of : NASA"),
    ],
)
def test_triples_become_plain_words(triple, line):
    assert linearise([triple]) == line
    assert linearise([triple, "x | y | z"]) == f"{line} | x : y : z"


def test_a_row_a_reference_with_labels_on_text_and_end():
    tokenizer = tiny_tokenizer("gpt2")
    end = tokenizer.eos_token_id
    rows = training_rows(ITEMS, tokenizer, 40)
    assert len(rows) == 3
    for row, item, reference in zip(rows, [ITEMS[0], *ITEMS], ["w5 w6", "w7", "w10 w11 w12"], strict=True):
        prompt, target = tokenizer(linearise(item.triples))["input_ids"], tokenizer(reference)["input_ids"]
        assert row["input_ids"] == [end, *prompt, *target, end]
        assert row["labels"] == [-100] * (len(prompt) + 1) + [*target, end]


def test_rows_that_are_too_long_lose_triples_first_then_text():
    tokenizer = tiny_tokenizer("gpt2")
    whole = training_rows(ITEMS, tokenizer, 40)
    assert max(len(row["input_ids"]) for row in whole) > 10
    for length in (10, 5, 4, 3):
        for row, cut in zip(whole, training_rows(ITEMS, tokenizer, length), strict=True):
            assert len(cut["input_ids"]) == len(cut["labels"]) == min(length, len(row["input_ids"]))
            assert cut["input_ids"][0] == tokenizer.eos_token_id
            target = [label for label in row["labels"] if label != -100]
            assert [label for label in cut["labels"] if label != -100] == target[: length - 1]
    cut = training_rows(ITEMS[1:], tokenizer, 7)[0]["input_ids"]
    assert cut[1:] == whole[2]["input_ids"][-6:]


def test_prompts_are_the_rows_before_the_text_padded_on_the_left():
    tokenizer = tiny_tokenizer("gpt2")
    batch = prompt_batch(ITEMS, tokenizer, 40)
    rows = training_rows(ITEMS, tokenizer, 40)
    for ids, mask, row in zip(batch["input_ids"], batch["attention_mask"], rows[::2], strict=True):
        prompt = row["input_ids"][: row["labels"].count(-100)]
        assert ids[mask.bool()].tolist() == prompt
        assert mask.tolist() == sorted(mask.tolist())  # padding first
    assert batch["attention_mask"].sum(1).tolist()[0] < batch["input_ids"].shape[1]
    short = prompt_batch(ITEMS, tokenizer, 4)["input_ids"]
    assert short.shape == (2, 4)
    assert short[:, 1:].equal(batch["input_ids"][:, -3:])


def test_a_model_generates_the_same_alone_and_in_a_batch():
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer("gpt2")
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    batch = prompt_batch(ITEMS, tokenizer, 30)
    together = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
    for index, item in enumerate(ITEMS):
        one = prompt_batch([item], tokenizer, 30)
        alone = model.generate(**one, **settings)[0, one["input_ids"].shape[1] :]
        assert alone.equal(together[index, : len(alone)])


def test_rows_train_a_model_through_the_stock_collator():
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer("gpt2")
    batch = DataCollatorForSeq2Seq(tokenizer)(training_rows(ITEMS, tokenizer, 40))
    assert (batch["labels"] != -100).sum() == 3 + 2 + 4
    assert torch.isfinite(model(**batch).loss)


def test_a_tokenizer_without_end_is_refused():
    tokenizer = tiny_tokenizer("gpt2")
    tokenizer.eos_token = None
    for make in (training_rows, prompt_batch):
        with pytest.raises(DataError, match="no end token"):
            make(ITEMS, tokenizer, 40)


@pytest.mark.real
def test_webnlg_with_a_real_tokenizer(real_model_path):
    folder = Path(__file__).parents[3] / "shared" / "data" / "webnlg"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: WebNLG")
    tokenizer = AutoTokenizer.from_pretrained(real_model_path("gpt2-mini"))
    splits = read_webnlg(folder)
    seen = {item.category for item in splits["train"]}
    assert len(splits["test_seen"]) + len(splits["test_unseen"]) == len(splits["test"]) == 1862
    assert all((item.category in seen) == (item in splits["test_seen"]) for item in splits["test"][::20])
    assert seen.isdisjoint(item.category for item in splits["test_unseen"])
    items = splits["validation"]
    rows = training_rows(items, tokenizer, 512)
    assert rows == training_rows(items, tokenizer, 263)  # nothing is cut
    references = [reference for item in items for reference in item.references]
    for row, reference in zip(rows, references, strict=True):
        text = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(text, skip_special_tokens=True) == reference
    assert tokenizer.decode(prompt_batch(items[:1], tokenizer, 384)["input_ids"][0]) == (
        "<|endoftext|>Aarhus : leader name : Jacob Bundsgaard\n"
    )
