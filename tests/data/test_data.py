import json

import pytest
from tiny_text import tiny_texts, tiny_tokenizer

from hf_mlp_fusion.data.texts import pad_batch, read_texts, split_texts, token_rows, token_windows
from hf_mlp_fusion.errors import DataError


def test_a_text_file_gives_a_text_a_line(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("one\n\n  two \nthree", encoding="utf-8")
    assert read_texts(path) == ["one", "two", "three"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_tables_give_their_column_of_texts(tmp_path, suffix):
    from datasets import Dataset

    path = tmp_path / f"table.{suffix}"
    table = Dataset.from_dict({"idx": [0, 1], "sentence": ["one", "two"], "other": ["a", "b"]})
    {"jsonl": table.to_json, "csv": table.to_csv, "parquet": table.to_parquet}[suffix](str(path))
    assert read_texts(path) == ["one", "two"]
    assert read_texts(str(path), column="other") == ["a", "b"]
    with pytest.raises(DataError, match=r"no column 'missing'.*idx, sentence, other"):
        read_texts(path, column="missing")


def test_unusable_sources_are_refused_with_one_line(tmp_path):
    empty, binary, untitled = tmp_path / "empty.txt", tmp_path / "binary.txt", tmp_path / "numbers.jsonl"
    empty.write_text("\n \n")
    binary.write_bytes(b"\xff\xfe\x00")
    untitled.write_text(json.dumps({"a": 1}))
    for source, message in (
        (empty, "holds no text"),
        (binary, "not UTF-8"),
        (untitled, "no column of texts"),
        (tmp_path / "none.txt", "no such file"),
        (tmp_path / "none.parquet", "no such file"),
        (tmp_path, "is a folder: give a file"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            read_texts(source)
        assert "\n" not in str(caught.value)


def test_a_text_falls_on_the_same_side_whatever_its_company():
    texts = [f"text {number}" for number in range(1000)]
    train, held_out = split_texts(texts, held_out=0.2)
    assert sorted(train + held_out) == sorted(texts)
    assert 150 < len(held_out) < 250
    some = texts[100:150][::-1]
    assert set(split_texts(some, held_out=0.2)[1]) == set(held_out) & set(some)
    assert split_texts(texts, held_out=0.0) == (texts, [])


@pytest.mark.parametrize("family", ["roberta", "gpt2", "switch_transformers"])
def test_rows_are_what_the_tokenizer_makes(family):
    tokenizer, texts = tiny_tokenizer(family), tiny_texts()
    assert list(token_rows(texts, tokenizer, 40)) == [tokenizer(text)["input_ids"] for text in texts]
    cut = list(token_rows(texts, tokenizer, 5))
    assert max(map(len, cut)) == 5
    whole = tokenizer("w1")["input_ids"]
    if family == "roberta":
        assert {(row[0], row[-1]) for row in cut} == {(whole[0], whole[-1])}


@pytest.mark.parametrize("family", ["roberta", "gpt2", "switch_transformers"])
def test_windows_hold_all_tokens_in_order(family):
    tokenizer, texts = tiny_tokenizer(family), tiny_texts()
    windows = list(token_windows(texts, tokenizer, 10))
    assert {len(window) for window in windows} == {10}
    framed = {"roberta": slice(1, -1), "gpt2": slice(None), "switch_transformers": slice(None, -1)}[family]
    joined = [token for window in windows for token in window[framed]]
    end = tokenizer.eos_token_id
    expected = [token for text in texts for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], end]]
    assert joined == expected[: len(joined)]
    assert len(expected) - len(joined) < 10
    short = list(token_windows(["w1 w2"], tokenizer, 10))
    assert len(short) == 1
    assert 3 <= len(short[0]) < 10


def test_padding_is_masked():
    ids, mask = pad_batch([[5, 6, 7], [8]], padding=0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
