"""Names that are mistyped become one line, at once, and never leave the machine."""

import huggingface_hub
import pytest
from conftest import tiny_model
from huggingface_hub.utils import get_session
from tiny_text import tiny_tokenizer

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.data import read_texts
from hf_mlp_fusion.errors import DataError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing is looked up: neither on the network nor, first, as a data set."""

    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(type(get_session()), "request", refuse)
    monkeypatch.setattr("datasets.load_dataset", refuse)


@pytest.fixture
def fused(tmp_path):
    fuse_model(tiny_model("gpt2"), FusionConfig(width=16)).save_pretrained(tmp_path / "fused")
    tiny_tokenizer("gpt2").save_pretrained(tmp_path / "fused")
    return tmp_path / "fused"


@pytest.mark.parametrize(
    "name", [r"C:\models\bert", "foo bar", "", " ", "bert@main", "a/b c", "a--b", "x" * 120, "ümlaut"]
)
@pytest.mark.parametrize("verb", ["inspect", "fuse", "export", "card", "compare"])
def test_models(verb, name, cli, tmp_path):
    (tmp_path / "t.txt").write_text("a\n")
    more = {"fuse": [tmp_path / "out"], "export": [tmp_path / "out"], "compare": ["--texts", tmp_path / "t.txt"]}
    code, _, err = cli(verb, name, *more.get(verb, []))
    assert code == 1
    assert err.count("\n") == 1
    assert any(word in err for word in ("give a model folder or a Hub id", "no such folder", "is not a model folder"))


@pytest.mark.parametrize(
    "source",
    ["nope.txt", "hello", "data/nope.txt", "data/nope.PARQUET", "two words", "", "a/b/c", "imdb:x", "/nope", "."],
)
def test_texts(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        read_texts(source)
    with pytest.raises(DataError):
        fuse_model(tiny_model("gpt2"), FusionConfig(width=16), calibration=source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--texts", "nope.txt"], "no texts could be read from nope.txt: there is no such file"),
        (["--texts", "owner/name"], "no texts could be read from owner/name: there is no such file"),
        (["--texts", "."], "is a folder: give a file of texts in it"),
        (["--dataset", "imdb"], "no name of a data set either: those have an owner"),
        (["--device", "cuda:77"], "--device cuda:77 cannot be used here"),
        (["--device", "gpu"], "--device gpu cannot be used here"),
        (["--device", "meta"], "--device meta cannot be used here"),
    ],
)
def test_options(options, message, cli, tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path / "stock")
    code, _, err = cli("fuse", tmp_path / "stock", tmp_path / "out", *options)
    assert code == 1
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("bench", ["glue", "webnlg"])
@pytest.mark.parametrize("data", ["nope", "no where", "glue/sst2.parquet"])
def test_bench_data(bench, data, cli, tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path / "stock")
    tiny_tokenizer("gpt2").save_pretrained(tmp_path / "stock")
    code, _, err = cli("bench", bench, tmp_path / "stock", "--data", data, "--out", tmp_path / "lines.jsonl")
    assert code == 1
    assert "no name of a data set either" in err


@pytest.mark.parametrize("repo", ["a b/c", "a/b/c", "", "a@b", "http://x"])
def test_repositories(repo, cli, fused):
    code, _, err = cli("push", fused, repo)
    assert code == 1
    assert "can be no repository on the Hub" in err
    assert "Log in" not in err


def test_devices_that_are_there(cli, tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path / "stock")
    code, _, err = cli("fuse", tmp_path / "stock", tmp_path / "out", "--width", "16", "--device", "cpu:0")
    assert code == 0, err
