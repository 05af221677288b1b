"""Calibration layer by layer, its layers on disk: the statistics of the plain way."""


import pytest
import torch
from any_family import tiny_family_model
from conftest import tiny_model
from safetensors.torch import load_file
from tiny_batches import batches

from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.fusion import calibrate_checkpoint, calibrate_model


def some_model(name):
    return tiny_model(name) if name in ("gpt2", "bert", "roberta") else tiny_family_model(FAMILIES[name])


def files(folder):
    """What statistics there are in a folder, by file and tensor."""
    return {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "bert",
        "mixtral",
        "gemma3_text",
        *(pytest.param(name, marks=pytest.mark.every) for name in ("roberta", "llama", "qwen3_moe", "gpt_oss", "phi")),
    ],
)
def test_it_is_the_plain_way(name, tmp_path):
    """Bit for bit, the metric of the loss too: a layer runs the same operations, on the same numbers."""
    model = some_model(name)
    model.save_pretrained(tmp_path / "model")
    data = batches(model, count=20)
    plain = calibrate_model(model, tmp_path / "plain", data)
    found = calibrate_checkpoint(str(tmp_path / "model"), tmp_path / "found", data)
    assert plain.header.metric == found.header.metric == "loss"
    assert plain.header.ffns == found.header.ffns
    expected, seen = files(tmp_path / "plain"), files(tmp_path / "found")
    assert expected.keys() == seen.keys()
    for file, tensors in expected.items():
        assert tensors.keys() == seen[file].keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, seen[file][key]), (file, key)
    assert not (tmp_path / "found.calibrating").exists()
