"""ONNX graphs of each kind of model: what it takes, and that the graph computes what the model does."""

import pytest
import torch
import transformers
from any_family import tiny_family_model

from hf_mlp_fusion import FusionConfig, UnsupportedModelError, export_plain, fuse_model
from hf_mlp_fusion.export.graph_inputs import graph_inputs
from hf_mlp_fusion.families import FAMILIES

for name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason=f"{name}, of the onnx extra, is not installed")

TEXT = {name: ["batch", "sequence"] for name in ("input_ids", "attention_mask")}
PAIR = TEXT | {"decoder_input_ids": ["batch", "decoder_sequence"]}
# Those after the first two take long, as a pair of stacks does.
KINDS = [
    pytest.param("llama", None, TEXT, id="llama"),
    pytest.param("vit", None, {"pixel_values": ["batch", 3, 16, 16]}, id="vit"),
    *(
        pytest.param(family, head, inputs, id=f"{family}-{head or 'main'}", marks=pytest.mark.every)
        for family, head, inputs in (
            ("mpnet", "MPNetModel", TEXT),
            ("distilbert", None, TEXT),
            ("modernbert", None, TEXT),
            ("deberta-v2", None, TEXT),
            ("roberta", "RobertaForSequenceClassification", TEXT | {"token_type_ids": ["batch", "sequence"]}),
            ("qwen3", None, TEXT),
            ("phi3", None, TEXT),
            ("gemma3_text", None, TEXT),
            ("opt", None, TEXT),
            ("t5", None, PAIR),  # its attention is traced in plain products alone
            ("bart", None, PAIR),
            ("marian", None, PAIR),
            ("whisper", "WhisperForConditionalGeneration", None),
            ("wav2vec2", None, {"input_values": ["batch", "samples"]}),
        )
    ),
]


@pytest.mark.parametrize(("family", "head", "shapes"), KINDS)
def test_the_graph_computes_what_the_fused_model_does(family, head, shapes, tmp_path):
    import onnxruntime

    stock = tiny_family_model(FAMILIES[family], head and getattr(transformers, head))
    model = fuse_model(stock, FusionConfig(width=32, layers="all"))
    assert export_plain(model, tmp_path / "plain", onnx=True).onnx_error <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "plain" / "model.onnx", providers=["CPUExecutionProvider"])
    found_shapes = {item.name: item.shape for item in session.get_inputs()}
    if shapes is not None:
        assert found_shapes == shapes
    inputs = graph_inputs(model, 4, 7)
    with torch.no_grad():
        expected = model(**inputs, **({"use_cache": False} if model.config.is_encoder_decoder else {}))
    names = [item.name for item in session.get_outputs()]
    found = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
    for name, array in zip(names, found, strict=True):
        assert (torch.from_numpy(array) - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max()


def test_two_inputs_at_once_are_refused(tmp_path):
    model = fuse_model(tiny_family_model(FAMILIES["clip"]), FusionConfig(width=32, layers="all"))
    with pytest.raises(UnsupportedModelError, match="CLIPModel takes texts and images at once"):
        export_plain(model, tmp_path / "plain", onnx=True)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_does_not_run_is_refused(monkeypatch, tmp_path):
    import onnxruntime

    class Broken:
        def __init__(self, *_, **__):
            raise onnxruntime.capi.onnxruntime_pybind11_state.Fail("no kernel\nand more")

    monkeypatch.setattr(onnxruntime, "InferenceSession", Broken)
    model = fuse_model(tiny_family_model(FAMILIES["vit"]), FusionConfig(width=32, layers="all"))
    with pytest.raises(UnsupportedModelError, match=r"onnxruntime cannot run the graph of ViTModel: no kernel$"):
        export_plain(model, tmp_path / "plain", onnx=True)
    assert list(tmp_path.iterdir()) == []
