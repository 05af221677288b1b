"""What lies beside a model goes with it, whatever its files are called: the result loads as the original does."""

import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from conftest import tiny_model
from safetensors.torch import load_file, save_file
from tiny_text import tiny_tokenizer

from hf_mlp_fusion import BrokenCheckpointError, FusionConfig, fuse_model
from hf_mlp_fusion.data import save_carrying
from hf_mlp_fusion.hub.files import sort_files
from hf_mlp_fusion.hub.stub import stub_text

TEXT = "hello world"


@pytest.fixture
def stock(tmp_path):
    folder = tmp_path / "stock"
    tiny_model("roberta").save_pretrained(folder)
    return folder


def bertweet(folder):
    """Its merges are in bpe.codes."""
    (folder / "vocab.txt").write_text("hel@@ 1\nlo 1\nworld 1\n")
    (folder / "bpe.codes").write_text("h e 1\nhe l 1\nl o</w> 1\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertweetTokenizer"}')
    return "bpe.codes"


def phobert(folder):
    name = bertweet(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PhobertTokenizer"}')
    return name


def fast(folder):
    tiny_tokenizer("roberta").save_pretrained(folder)
    return "tokenizer.json"


@pytest.mark.parametrize("make", [bertweet, phobert, fast])
def test_tokenizers(make, cli, stock, tmp_path):
    name = make(stock)
    code, _, err = cli("fuse", stock, tmp_path / "fused", "--width", "16")
    assert code == 0, err
    assert (tmp_path / "fused" / name).read_bytes() == (stock / name).read_bytes()
    original = transformers.AutoTokenizer.from_pretrained(stock)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "fused")
    assert again(TEXT).input_ids == original(TEXT).input_ids
    assert name in sort_files(tmp_path / "fused").uploaded
    code, _, err = cli("export", tmp_path / "fused", tmp_path / "plain")
    assert code == 0, err
    assert (tmp_path / "plain" / name).is_file()


def test_commands_save_the_stub_and_exports_have_none(cli, stock, tmp_path):
    """Without it, loaders do not know the `model_type`, and do not say what to install."""
    assert cli("fuse", stock, tmp_path / "fused", "--width", "16")[0] == 0
    assert cli("export", tmp_path / "fused", tmp_path / "plain")[0] == 0
    fused, plain = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("fused", "plain"))
    assert fused["auto_map"]["AutoConfig"] == "modeling_mlp_fusion.FusedRobertaConfig"
    assert fused["auto_map"]["AutoModelForMaskedLM"] == "modeling_mlp_fusion.FusedRobertaForMaskedLM"
    assert (tmp_path / "fused" / "modeling_mlp_fusion.py").read_text() == stub_text()
    assert "auto_map" not in plain
    assert not (tmp_path / "plain" / "modeling_mlp_fusion.py").exists()
    original = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "fused")
    assert type(original).__name__ == "FusedRobertaForMaskedLM"  # no remote code: the package is here


def test_what_loaders_say_without_the_package(cli, stock, tmp_path):
    assert cli("fuse", stock, tmp_path / "fused", "--width", "16")[0] == 0
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'hf_mlp_fusion':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}')\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from transformers import AutoModel\n"
        "for trust in (False, True):\n"
        "    try:\n"
        "        AutoModel.from_pretrained(sys.argv[1], trust_remote_code=trust)\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, *str(error).split())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "fused")]
    home = os.environ | {"HF_HOME": str(tmp_path / "home")}
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=home).stdout.splitlines()
    assert "contains custom code" in said[0]
    assert str(tmp_path / "fused") in said[0]
    assert said[1].startswith("ImportError")
    assert "pip install hf_mlp_fusion" in said[1]


def sentence_transformer(folder, ending="safetensors"):
    fast(folder)
    names = ("", "1_Pooling", "2_Dense", "3_Normalize")
    (folder / "modules.json").write_text(
        json.dumps([{"idx": i, "name": str(i), "path": p} for i, p in enumerate(names)])
    )
    for name in names[1:3]:
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    (folder / "2_Dense" / "code.py").write_text("raise SystemExit")
    (folder / "2_Dense" / "deeper").mkdir()
    (folder / "2_Dense" / "deeper" / "words.txt").write_text("a")
    if ending == "safetensors":
        save_file({"linear.weight": torch.ones(2, 2)}, folder / "2_Dense" / "model.safetensors")
    else:
        (folder / "2_Dense" / f"pytorch_model.{ending}").write_bytes(b"pickle")


def test_modules_of_sentence_transformers(cli, stock, tmp_path):
    sentence_transformer(stock)
    code, _, err = cli("fuse", stock, tmp_path / "fused", "--width", "16")
    assert code == 0, err
    assert load_file(tmp_path / "fused" / "2_Dense" / "model.safetensors")["linear.weight"].equal(torch.ones(2, 2))
    assert (tmp_path / "fused" / "2_Dense" / "deeper" / "words.txt").is_file()
    assert not (tmp_path / "fused" / "2_Dense" / "code.py").exists()
    uploaded = sort_files(tmp_path / "fused").uploaded
    assert {"2_Dense/model.safetensors", "2_Dense/config.json", "1_Pooling/config.json"} <= set(uploaded)
    code, _, err = cli("export", tmp_path / "fused", tmp_path / "plain")
    assert code == 0, err
    assert (tmp_path / "plain" / "2_Dense" / "model.safetensors").is_file()


def test_the_whole_of_sentence_transformers(cli, tmp_path):
    st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    tiny_model("bert", transformers.BertModel).save_pretrained(tmp_path / "bert")
    tiny_tokenizer("bert").save_pretrained(tmp_path / "bert")
    parts = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    modules = [parts.Transformer(str(tmp_path / "bert")), parts.Pooling(16), parts.Dense(16, 4), parts.Normalize()]
    st.SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "stock"))
    code, _, err = cli("fuse", tmp_path / "stock", tmp_path / "fused", "--width", "32")
    assert code == 0, err
    dense = [
        st.SentenceTransformer(str(tmp_path / name), device="cpu")[2].linear.weight for name in ("stock", "fused")
    ]
    assert dense[0].equal(dense[1])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            lambda folder: sentence_transformer(folder, "bin"),
            "pytorch_model.bin is a pickle, which is not carried along",
        ),
        (lambda folder: (folder / "modules.json").write_text("[{}]"), "must list modules with their paths"),
        (lambda folder: (folder / "modules.json").write_text("no json"), "must list modules with their paths"),
        (lambda folder: (folder / "modules.json").write_text('[{"path": "../x"}]'), "leads out of the folder"),
        (lambda folder: (folder / "modules.json").write_text('[{"path": "/etc"}]'), "leads out of the folder"),
    ],
)
def test_what_cannot_be_carried(fault, message, cli, stock, tmp_path):
    fault(stock)
    code, _, err = cli("fuse", stock, tmp_path / "fused", "--width", "16")
    assert code == 1
    assert message in err
    assert not (tmp_path / "fused").exists()


def test_a_tokenizer_that_does_not_survive_is_told(stock, tmp_path, monkeypatch):
    fast(stock)
    fused = fuse_model(transformers.AutoModelForMaskedLM.from_pretrained(stock), FusionConfig(width=16))
    monkeypatch.setattr("hf_mlp_fusion.data.carried.carry_side_files", lambda *_: None)
    with pytest.raises(BrokenCheckpointError, match="cannot be carried along"):
        save_carrying(fused, str(stock), tmp_path / "fused")
