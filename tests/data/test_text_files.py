"""Files of texts as other programs write them: byte order marks, named columns, and broken ones in one line."""

import codecs

import pytest
from conftest import tiny_model
from tiny_text import tiny_texts, tiny_tokenizer

from hf_mlp_fusion.data import read_texts
from hf_mlp_fusion.errors import DataError

MARK = codecs.BOM_UTF8
WHOLE = {
    "a.txt": b"first text\nsecond",
    "a.csv": b"text,label\nfirst text,0\nsecond,1\n",
    "a.jsonl": b'{"text": "first text"}\n{"text": "second"}\n',
    "a.json": b'[{"text": "first text"}, {"text": "second"}]',
}


@pytest.mark.parametrize("mark", [b"", MARK], ids=["bare", "marked"])
@pytest.mark.parametrize("name", WHOLE)
def test_a_byte_order_mark_is_no_text(name, mark, tmp_path):
    (tmp_path / name).write_bytes(mark + WHOLE[name])
    assert read_texts(tmp_path / name) == ["first text", "second"]


BROKEN = {
    "cut.jsonl": (b'{"text": "first"}\n{"text": "sec\n', "is no jsonl that can be read: .*JSON parse error"),
    "bare.jsonl": (b'"a"\n"b"\n', "is no jsonl that can be read: "),
    "empty.jsonl": (b"", "holds no text"),
    "empty.txt": (b"", "holds no text"),
    "quote.csv": (b'text,label\n"unclosed,0\nx,1\n', "is no csv that can be read: .*EOF inside string"),
    "latin.csv": ("text\ncafé\n".encode("latin-1"), "is no csv that can be read: 'utf-8' codec"),
    "wide.txt": ("hello".encode("utf-16"), "is not UTF-8 text: convert it"),
    "other.parquet": (b"PAR1nonsense", "is no parquet that can be read: .*magic bytes"),
    "columns.csv": (b"a,b\n1,2\n", r"no column of texts; name one of its columns \(--column, column=\): a, b"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_one_line(name, tmp_path):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_texts(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("verb", ["fuse", "tune", "compare"])
def test_columns_are_named_on_the_command_line(verb, cli, tmp_path):
    tiny_model("bert").save_pretrained(tmp_path / "stock")
    tiny_tokenizer("bert").save_pretrained(tmp_path / "stock")
    lines = "\n".join(f"{number},{text}" for number, text in enumerate(tiny_texts(60)))
    (tmp_path / "a.csv").write_text(f"number,review\n{lines}\n")
    texts = ["--texts", tmp_path / "a.csv"]
    fusing = ["fuse", tmp_path / "stock", tmp_path / "fused", "--width", 16]
    verbs = {
        "fuse": fusing,
        "tune": ["tune", tmp_path / "fused", tmp_path / "tuned"],
        "compare": ["compare", tmp_path / "nowhere", "--out", tmp_path / "out"],
    }
    if verb == "tune":
        assert cli(*fusing)[0] == 0
    code, _, err = cli(*verbs[verb], *texts)
    assert code == 1
    assert err.splitlines()[-1].endswith("name one of its columns (--column, column=): number, review")
    code, _, err = cli(*verbs[verb], *texts, "--column", "review")
    if verb == "compare":  # which then looks for its model
        assert "nowhere: no such folder" in err
    else:
        assert code == 0, err
