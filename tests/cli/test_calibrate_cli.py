"""`calibrate`, and `fuse --statistics`, as users meet them."""

import json

import pytest
from conftest import tiny_model
from safetensors.torch import load_file
from tiny_text import tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::hf_mlp_fusion.FusionWarning")


@pytest.fixture
def stock(tmp_path):
    folder = tmp_path / "stock"
    tiny_model("gpt2").save_pretrained(folder)
    tiny_tokenizer("gpt2").save_pretrained(folder)
    (tmp_path / "texts.txt").write_text("\n".join(["a b c d", "b c a", "d d a b c"] * 60))
    return folder


@pytest.mark.parametrize("more", [[], ["--offload"]], ids=["plain", "offload"])
def test_what_fuse_makes_of_statistics_is_what_it_makes_of_texts(cli, stock, tmp_path, more):
    texts = ["--texts", tmp_path / "texts.txt"]
    code, out, err = cli("calibrate", stock, tmp_path / "statistics", *texts, *more)
    assert code == 0, err
    assert "3 FFNs on" in out
    assert not list(tmp_path.glob("*.calibrating"))
    fine = ("--multiple-of", "8", "--ntk", "none")
    for folder, source in (("one", texts), ("two", ["--statistics", tmp_path / "statistics"])):
        code, out, err = cli("fuse", stock, tmp_path / folder, "--width", "auto:0.5", *fine, *source)
        assert code == 0, err
    expected, found = (load_file(tmp_path / folder / "model.safetensors") for folder in ("one", "two"))
    assert expected.keys() == found.keys()
    assert all(expected[name].equal(found[name]) for name in expected)
    code, out, err = cli("calibrate", stock, tmp_path / "statistics", *texts, *more, "--json")  # it is done
    assert json.loads(out)["whole"]


def test_what_is_no_statistics_is_one_line(cli, stock, tmp_path):
    code, out, err = cli("fuse", stock, tmp_path / "out", "--statistics", stock)
    assert (code, out) == (1, "")
    assert err.strip().splitlines()[-1] == (
        f"error: {stock} holds no statistics: make them with `hf-mlp-fusion calibrate`"
    )
    code, out, err = cli("calibrate", stock, stock, "--texts", tmp_path / "texts.txt")
    assert code == 1
    assert "holds no statistics" in err
