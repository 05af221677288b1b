"""The command line as users meet it, in its own process where that matters, in this one where it does not."""

import json
import os
import resource
import subprocess
import sys

import pytest
import torch
import transformers
from conftest import first_output, tiny_model

from hf_mlp_fusion import FusionConfig, FusionConfigError, fuse_model
from hf_mlp_fusion.cli.options import parse_layers, parse_width
from hf_mlp_fusion.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore::hf_mlp_fusion.FusionWarning")


@pytest.fixture
def stock(tmp_path):
    """A stock folder with the files that lie beside weights in practice."""
    folder = tmp_path / "stock"
    tiny_model("bert").save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello"]))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "README.md").write_text("the base model's card")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    return folder


def test_fuse_and_inspect(cli, stock, tmp_path):
    code, out, _ = cli("fuse", stock, tmp_path / "a" / "fused", "--width", "16", "--layers", "last:2")
    assert code == 0
    assert "64 → 16" in out
    assert "Left as they were: 1 FFNs (encoder.layer.0): not among layers='last:2'" in out.replace("\n", "")
    fused = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "a" / "fused")
    expected = fuse_model(tiny_model("bert"), FusionConfig(width=16, layers="last:2"))
    torch.testing.assert_close(first_output(fused), first_output(expected))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "a" / "fused")("hello").input_ids == [2, 5, 3]
    names = sorted(str(path.relative_to(tmp_path / "a" / "fused")) for path in (tmp_path / "a" / "fused").rglob("*"))
    assert names == [
        "1_Pooling",
        "1_Pooling/config.json",
        "config.json",
        "fusion_report.json",
        "model.safetensors",
        "modeling_mlp_fusion.py",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    code, shown, _ = cli("inspect", tmp_path / "a" / "fused")
    assert code == 0
    assert "64 → 16" in shown
    code, shown, _ = cli("inspect", tmp_path / "a" / "fused", "--json")
    assert json.loads(shown) == json.loads(fused.fusion_report.to_json())


def test_fuse_calibrated(cli, stock, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(["hello", "hello hello", "hello hello hello"] * 20))
    code, out, err = cli("fuse", stock, tmp_path / "fused", "--width", "16", "--texts", tmp_path / "texts.txt")
    assert code == 0, err
    assert "obs+output" in out
    assert "how" in out
    section = transformers.AutoConfig.from_pretrained(tmp_path / "fused").mlp_fusion
    assert section["recipe"]["selection"] == "obs"
    assert section["ffns"]["encoder.layer.0"]["power"] == 0
    texts = ("--texts", tmp_path / "texts.txt", "--power", "1")
    code, _, err = cli("fuse", stock, tmp_path / "apart", "--width", "16", *texts)
    assert code == 0, err
    section = transformers.AutoConfig.from_pretrained(tmp_path / "apart").mlp_fusion
    assert len(section["ffns"]["encoder.layer.0"]["scales"]) == 2
    code, _, err = cli("fuse", stock, tmp_path / "other", "--width", "16", "--power", "2")
    assert code == 1
    assert "power must be a number from 0 to 1" in err


def test_fuse_sampled(cli, tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path / "stock")
    code, out, err = cli("fuse", tmp_path / "stock", tmp_path / "fused", "--width", "16", "--sampled", "--json")
    assert code == 0, err
    assert {ffn["method"] for ffn in json.loads(out)["ffns"]} == {"obs+output"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--texts", "nowhere.txt"], "nowhere.txt"),
        (
            ["--texts", "a.txt", "--sampled"],
            "give one of --texts FILE, --dataset NAME, --sampled and --statistics FOLDER",
        ),
        (
            ["--selection", "obs"],
            "selection='obs' needs calibration data: pass calibration= (on the command line --texts)",
        ),
        (["--width", "auto:0.25"], "pass calibration="),
        (["--refit", "all"], "refit must be one of 'auto', 'none', 'bias', 'output'"),
        (["--ntk", "yes"], "ntk must be one of 'auto', 'none', 'match'"),
    ],
)
def test_calibration_errors_are_one_line(cli, stock, tmp_path, options, message):
    code, out, err = cli("fuse", stock, tmp_path / "fused", *options)
    assert (code, out) == (1, "")
    assert message in err
    assert err.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "fused").exists()


def test_json_is_the_only_output(cli, stock, tmp_path):
    code, out, err = cli("fuse", stock, tmp_path / "fused", "--width", "8", "--json")
    assert code == 0
    assert json.loads(out)["ffns"][0]["width"] == 8
    assert "warning: 3 of 3 FFNs become narrower than the hidden size (16)" in err


def test_dtype(cli, stock, tmp_path):
    assert cli("fuse", stock, tmp_path / "fused", "--width", "16", "--dtype", "bfloat16")[0] == 0
    assert transformers.AutoModel.from_pretrained(tmp_path / "fused").dtype == torch.bfloat16


def test_overwrite(cli, stock, tmp_path):
    out = tmp_path / "fused"
    assert cli("fuse", stock, out, "--width", "16")[0] == 0
    code, _, err = cli("fuse", stock, out, "--width", "32")
    assert (code, "is not empty" in err, "--overwrite" in err) == (1, True, True)
    assert cli("fuse", stock, out, "--width", "32", "--overwrite")[0] == 0
    assert transformers.AutoConfig.from_pretrained(out).mlp_fusion["ffns"]["encoder.layer.0"]["width"] == 32
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fused", "stock"]


def test_overwrite_takes_only_model_folders(cli, stock, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    code, _, err = cli("fuse", stock, tmp_path / "photos", "--width", "16", "--overwrite")
    assert code == 1
    assert "not a model folder" in err
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"


def without_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_config(folder):
    (folder / "config.json").unlink()


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


def with_nan(folder):
    model = transformers.BertForMaskedLM.from_pretrained(folder)
    with torch.no_grad():
        model.bert.encoder.layer[2].output.dense.weight[0, 0] = float("nan")
    model.save_pretrained(folder)


def of_unknown_type(folder):
    tiny = transformers.FNetConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, intermediate_size=8)
    transformers.FNetForMaskedLM(tiny).save_pretrained(folder)


def of_unknown_class(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["MagicModel"]}))


@pytest.mark.parametrize(
    ("breakage", "options", "message"),
    [
        (without_weights, [], "no safetensors weights, and pickles are not read"),
        (without_config, [], "no readable config.json"),
        (truncated, [], "could not be loaded"),
        (with_nan, [], "the weights of encoder.layer.2 hold NaN or infinity"),
        (of_unknown_type, [], "models of type 'fnet' are not supported; `hf-mlp-fusion families` lists"),
        (of_unknown_class, [], "has the class 'MagicModel'"),
        (None, ["--width", "65"], "width=65 is more than the 64 units"),
        (None, ["--width", "many"], "--width: 'many' is no number"),
        (None, ["--width", "1.5"], "width=1.5 is no share"),
        (None, ["--layers", "last:9"], "the model has 3 layers"),
        (None, ["--layers", "h.*"], "no FFN has a name like 'h.*'"),
        (None, ["--targets", "experts"], "the model has no experts"),
        (None, ["--clustering", "dbscan"], "clustering must be one of 'ward', 'kmeans'"),
        (None, ["--dtype", "int8"], "--dtype must be"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(cli, stock, tmp_path, breakage, options, message):
    if breakage is not None:
        breakage(stock)
    code, out, err = cli(
        "fuse", stock, tmp_path / "fused", *(options if "--width" in options else ["--width", "16", *options])
    )
    assert code == 1
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["stock"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/no/such/folder", "no such folder"),
        ("./no-such-folder", "no such folder"),
        ("a/b/c", "no such folder"),
        ("nobody/nothing", "no readable config.json"),
    ],
)
def test_unknown_models(cli, tmp_path, model, message):
    code, _, err = cli("fuse", model, tmp_path / "fused")
    assert code == 1
    assert message in err
    code, _, err = cli("inspect", model)
    assert code == 1
    assert "no such folder" in err


def test_fused_models_are_refused(cli, stock, tmp_path):
    cli("fuse", stock, tmp_path / "fused", "--width", "16")
    code, _, err = cli("fuse", tmp_path / "fused", tmp_path / "twice")
    assert code == 1
    assert "is fused already" in err


@pytest.mark.parametrize("out", ["stock", "."])
def test_the_model_itself_is_no_output(cli, stock, tmp_path, out):
    code, _, err = cli("fuse", stock, tmp_path / out, "--overwrite")
    assert code == 1
    assert "is or holds the model itself" in err


def test_inspect_refuses_what_is_not_whole(cli, stock, tmp_path):
    assert "is not a fused model" in cli("inspect", stock)[2]
    cli("fuse", stock, tmp_path / "a", "--width", "16")
    cli("fuse", stock, tmp_path / "b", "--width", "32")
    (tmp_path / "b" / "fusion_report.json").replace(tmp_path / "a" / "fusion_report.json")
    assert "is the receipt of another fusion" in cli("inspect", tmp_path / "a")[2]
    assert "its receipt fusion_report.json is missing" in cli("inspect", tmp_path / "b")[2]
    (tmp_path / "b" / "config.json").write_text("{")
    assert "is not JSON" in cli("inspect", tmp_path / "b")[2]


def test_a_full_disk_leaves_nothing(stock, tmp_path):
    """A limit on file sizes stands in for a full disk: the weights cannot be written."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [sys.executable, "-m", "hf_mlp_fusion.cli", "fuse", str(stock), str(tmp_path / "fused"), "--width", "16"]
    run = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, env=os.environ)
    assert run.returncode == 1
    assert "could not be written, and nothing was left behind" in run.stderr
    assert "Traceback" not in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["stock"]


@pytest.mark.parametrize(
    ("text", "width"),
    [("384", 384), ("0.25", 0.25), ("1.0", 1.0), ("h.0.mlp=8,h.*=0.5", {"h.0.mlp": 8, "h.*": 0.5})],
)
def test_parse_width(text, width):
    assert parse_width(text) == width
    assert type(parse_width(text)) is type(width)


@pytest.mark.parametrize("text", ["", "a", "h.*=", "1,2"])
def test_parse_width_refuses(text):
    with pytest.raises(FusionConfigError, match="is no number"):
        parse_width(text)


@pytest.mark.parametrize(
    ("text", "layers"),
    [("all", "all"), ("last:2", "last:2"), ("4", [4]), ("4,-1", [4, -1]), ("h.1,h.2", ["h.1", "h.2"])],
)
def test_parse_layers(text, layers):
    assert parse_layers(text) == layers


def test_families_are_listed(cli):
    code, out, _ = cli("families")
    assert code == 0
    assert "llama" in out
    code, out, _ = cli("families", "--json")
    rows = {row["model type"]: row for row in json.loads(out)}
    assert rows["bart"]["width field"] == "encoder_ffn_dim, decoder_ffn_dim"
    assert rows["phi3"]["FFNs"] == "gated, gate and up in one matrix"
    assert rows["switch_transformers"]["FFNs"] == "two matrices, and experts"
    assert set(rows) == set(FAMILIES)


def test_names_are_checked_before_a_model_is_loaded(cli, stock, tmp_path, monkeypatch):
    """Or a slip of the pen costs the minutes that loading takes."""
    monkeypatch.setattr("hf_mlp_fusion.modeling.loading.load_whole", lambda *_: pytest.fail("a model was loaded"))
    texts = tmp_path / "texts.txt"
    texts.write_text("one\ntwo\n", encoding="utf-8")
    code, _, err = cli("compare", stock, "--texts", texts, "--methods", "fusion,magic", "--out", tmp_path / "out")
    assert (code, "there is no method 'magic'" in err) == (1, True)
    code, _, err = cli("tune", stock, tmp_path / "out", "--texts", texts, "--target", "magic")
    assert (code, "target must be one of 'hidden_states', 'ffn_outputs'" in err) == (1, True)
    code, _, err = cli("bench", "glue", stock, "--methods", "magic", "--tasks", "cola", "--out", tmp_path / "a.jsonl")
    assert (code, "there is no method 'magic'" in err) == (1, True)


@pytest.mark.parametrize("verb", ["fuse", "tune", "export", "inspect"])
def test_what_processes_do_not_share_is_refused_in_a_launch(verb, cli, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    code, _, err = cli(verb, "model", *([] if verb == "inspect" else [tmp_path / "out"]))
    assert code == 1
    assert err.count("\n") == 1
    assert "start it without a launcher" in err
    assert not [*tmp_path.iterdir()]
