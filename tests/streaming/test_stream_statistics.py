"""A checkpoint fused shard by shard on statistics is what `fuse_model` saves on them."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from any_family import tiny_family_model
from conftest import tiny_model
from test_stream import command, llama
from test_stream_families import files_of
from tiny_batches import batches

from hf_mlp_fusion import BrokenCheckpointError, FusionConfig, fuse_model
from hf_mlp_fusion.errors import MemoryLimitError
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


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read in /proc")
def test_memory_is_that_of_three_gram_matrices(tmp_path):
    """Against a tiny model, which has all libraries in memory as well: the moments, and what is eliminated from."""
    peaks = []
    for name, hidden, units in (("tiny", 64, 128), ("wide", 64, 2048)):
        ffn = llama(tmp_path / name, hidden, units, 1)
        stock = load_stock_model(str(tmp_path / name))
        ids = torch.randint(2, 60, (8, 200), generator=torch.Generator().manual_seed(0))
        calibrate_model(stock, tmp_path / "statistics" / name, [{"input_ids": ids}], metric="output")
        given = [tmp_path / name, tmp_path / "out" / name, "all", tmp_path / "statistics" / name]
        run = subprocess.run(command(*given), check=True, capture_output=True, text=True)
        peaks.append(int(run.stdout.split()[-1]))
    # MKL's buffers take 40 MB more; with the copies of the Gram matrix that there were once, they were 5.7 matrices.
    assert peaks[1] - peaks[0] < ffn + 24 * units**2 + 16 * units * hidden + 70e6


@pytest.mark.parametrize("streamed", [True, False])
def test_too_little_memory_is_told_before(streamed, tmp_path, monkeypatch):
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "stock")
    statistics = calibrate_model(model, tmp_path / "statistics", batches(model))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=100_000, total=10**9))
    config = FusionConfig(width=32, ntk="none")
    if streamed:
        with pytest.raises(MemoryLimitError, match=r"the largest FFN needs about 0 MB .* or leave the statistics out"):
            fuse_checkpoint(str(tmp_path / "stock"), tmp_path / "out", config, statistics=statistics.folder)
        assert not [*tmp_path.glob("out*")]
    else:
        with pytest.raises(MemoryLimitError, match=r"this fusion needs about 0 MB .*: fuse --stream needs less"):
            fuse_model(model, config, calibration=statistics)
