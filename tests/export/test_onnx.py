"""Plain exports as ONNX graphs."""

import importlib.util
import json

import pytest
import torch
import transformers
from conftest import model_inputs, tiny_model

from hf_mlp_fusion import FusionConfig, FusionConfigError, UnsupportedModelError, export_plain, fuse_model

CONFIG = FusionConfig(width=16)


@pytest.fixture
def onnx():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name}, of the onnx extra, is not installed")


def run(path, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(item.name, item.shape) for item in session.get_inputs()] == [
        (name, ["batch", "sequence"]) for name in inputs
    ]
    return session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})


@pytest.mark.parametrize(
    ("family", "head"),
    [("bert", transformers.BertForSequenceClassification), ("gpt2", transformers.GPT2LMHeadModel)],
)
def test_the_graph_computes_what_the_fused_model_does(onnx, family, head, tmp_path):
    model = fuse_model(tiny_model(family, head, num_hidden_layers=1), CONFIG)
    report = export_plain(model, tmp_path / "plain", onnx=True)
    assert report.onnx_error <= 1e-4
    for batch, length in ((1, 4), (5, 23)):
        inputs = model_inputs(model, batch, length)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][0, 3:] = 0
        if family == "bert":
            inputs["token_type_ids"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            expected = model(**inputs).logits
        (found,) = run(tmp_path / "plain" / "model.onnx", inputs)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["use_cache"] is True


def test_experts_have_no_graph(onnx, tmp_path):
    model = fuse_model(tiny_model("switch_transformers"), FusionConfig(width=16, targets="all"))
    with pytest.raises(UnsupportedModelError, match="which experts run depends on the data"):
        export_plain(model, tmp_path / "plain", onnx=True)
    assert list(tmp_path.iterdir()) == []


def test_what_torch_cannot_export_leaves_nothing(onnx, tmp_path):
    model = fuse_model(tiny_model("bert", transformers.BertForMultipleChoice), CONFIG)
    with pytest.raises(UnsupportedModelError, match=r"torch\.onnx cannot export BertForMultipleChoice: "):
        export_plain(model, tmp_path / "plain", onnx=True)
    assert list(tmp_path.iterdir()) == []


def test_absent_packages_are_named(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(FusionConfigError, match=r"ONNX needs .*onnxscript.*pip install 'hf_mlp_fusion\[onnx\]'"):
        export_plain(fuse_model(tiny_model("bert"), CONFIG), tmp_path / "plain", onnx=True)


@pytest.mark.real
def test_the_command_on_a_real_model(onnx, cli, real_model_path, tmp_path):
    code, _, err = cli("fuse", real_model_path("gpt2-mini"), tmp_path / "fused")
    assert code == 0, err
    code, out, err = cli("export", tmp_path / "fused", tmp_path / "plain", "--onnx", "--json")
    assert code == 0, err
    assert json.loads(out)["onnx_error"] <= 1e-4
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "plain")
    batch = tokenizer("The film was a great success.", return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "fused", dtype=torch.float32)
    with torch.no_grad():
        expected = model(**inputs).logits
    (found,) = run(tmp_path / "plain" / "model.onnx", inputs)
    assert (torch.from_numpy(found) - expected).abs().max() <= 1e-2 * expected.abs().max()  # stored in float16
