"""A checkpoint fused shard by shard on statistics is what `fuse_model` saves on them."""

import pytest
import torch
from any_family import tiny_family_model
from conftest import tiny_model
from test_stream_families import files_of
from tiny_batches import batches

from hf_mlp_fusion import BrokenCheckpointError, FusionConfig, fuse_model
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.fusion.calibrate import calibrate_model
from hf_mlp_fusion.modeling.loading import load_stock_model
from hf_mlp_fusion.streaming import fuse_checkpoint


def both(model, data, config, tmp_path):
    """Calibrates and fuses a model both ways; the folders."""
    model.save_pretrained(tmp_path / "stock", max_shard_size="15KB")
    stock = load_stock_model(str(tmp_path / "stock"))
    statistics = calibrate_model(stock, tmp_path / "statistics", data)
    fuse_model(stock, config, calibration=statistics).save_pretrained(tmp_path / "plain", max_shard_size="10KB")
    fuse_checkpoint(
        str(tmp_path / "stock"),
        tmp_path / "streamed",
        config,
        statistics=tmp_path / "statistics",
        max_shard_size="10KB",
    )
    return tmp_path / "plain", tmp_path / "streamed"


@pytest.mark.parametrize("width", [32, "auto:0.5"])
@pytest.mark.parametrize("family", ["gpt2", "bert", pytest.param("switch_transformers", marks=pytest.mark.every)])
def test_on_statistics(family, width, tmp_path):
    model = tiny_model(family)
    config = FusionConfig(width=width, ntk="none", multiple_of=8, targets="all")
    plain, streamed = both(model, batches(model, count=40), config, tmp_path)
    assert files_of(streamed) == files_of(plain)


@pytest.mark.filterwarnings("ignore:.*saw too few calibration tokens")
@pytest.mark.parametrize("name", ["mixtral", pytest.param("qwen3_moe", marks=pytest.mark.every)])
def test_stacks_on_statistics(name, tmp_path):
    ids = torch.randint(2, 90, (17, 2), generator=torch.Generator().manual_seed(3))
    config = FusionConfig(width=0.75, multiple_of=2, ntk="none")
    plain, streamed = both(tiny_family_model(FAMILIES[name]), [{"input_ids": ids}], config, tmp_path)
    assert files_of(streamed) == files_of(plain)


def test_statistics_of_other_weights_are_refused(tmp_path):
    model = tiny_model("gpt2")
    calibrate_model(model, tmp_path / "statistics", batches(model))
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight.add_(1)
    model.save_pretrained(tmp_path / "stock")
    config = FusionConfig(width=32, ntk="none")
    with pytest.raises(BrokenCheckpointError, match=r"was calibrated on other weights of h\.1\.mlp than these"):
        fuse_checkpoint(str(tmp_path / "stock"), tmp_path / "out", config, statistics=tmp_path / "statistics")
    assert not (tmp_path / "out").exists()
