"""What is no recipe, or asks for what is not there, is refused in one line that says what to write."""

import pytest
import torch
from conftest import tiny_model

from hf_mlp_fusion import FusionConfig, FusionConfigError, UnsupportedModelError, freeze_routers, fuse_model
from hf_mlp_fusion.baselines import reduce_model


@pytest.mark.parametrize("config", [0.25, 384, "auto:0.5", {"width": 16}, None, FusionConfig, ["a"], True])
@pytest.mark.parametrize("way", [fuse_model, reduce_model])
def test_no_recipe(way, config):
    with pytest.raises(FusionConfigError, match=r"must be a FusionConfig, not .*: write .*FusionConfig\(width="):
        way(tiny_model("bert"), config)


def test_the_width_is_written_into_the_mend():
    with pytest.raises(FusionConfigError, match=r"write fuse_model\(model, FusionConfig\(width=0.25\)\)"):
        fuse_model(tiny_model("bert"), 0.25)


def test_swapped_arguments():
    with pytest.raises(UnsupportedModelError, match="a transformers model is needed, not a FusionConfig"):
        fuse_model(FusionConfig(), tiny_model("bert"))


def test_routers_of_what_is_no_model():
    with pytest.raises(UnsupportedModelError):
        freeze_routers(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("layers", ["2:99", "99:", "-99:2", ":4", "0:-4", "last:99", "first:4", [3], [-4]])
def test_layers_that_are_not_there(layers):
    with pytest.raises(FusionConfigError, match="the model has"):
        fuse_model(tiny_model("bert"), FusionConfig(width=16, layers=layers))


@pytest.mark.parametrize(("layers", "count"), [("1:3", 2), ("-2:", 2), (":3", 3), ("-3:-1", 2), ("2:", 1)])
def test_ranges_that_are_there(layers, count):
    fused = fuse_model(tiny_model("bert"), FusionConfig(width=16, layers=layers))
    assert len(fused.fusion_report.ffns) == count


@pytest.mark.parametrize(
    ("width", "message"),
    [
        ("1.0", "keeps every unit"),
        ("64", "keeps every unit"),
        ("*=64", "keeps every unit"),
        ("abc", "a share (0.25), auto:0.25, or pairs"),
        ("50%", "a share (0.25), auto:0.25, or pairs"),
        ("auto:abc", "or 'auto:0.25'"),
        ("2:99", "a share (0.25), auto:0.25, or pairs"),
    ],
)
def test_widths_on_the_command_line(width, message, cli, tmp_path):
    tiny_model("bert").save_pretrained(tmp_path / "stock")
    code, _, err = cli("fuse", tmp_path / "stock", tmp_path / "out", "--width", width)
    assert code == 1
    assert message in err
    assert not (tmp_path / "out").exists()
