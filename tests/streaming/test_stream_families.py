"""A checkpoint fused shard by shard is, byte for byte, what `fuse_model` saves, in every family."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import transformers
from any_family import every_family, tiny_family_model
from conftest import TINY_HEADS, tiny_model

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.modeling.loading import load_stock_model
from hf_mlp_fusion.streaming import fuse_checkpoint

HALF = FusionConfig(width=0.5, targets="all", multiple_of=8)


def files_of(folder):
    """The bytes of each file, the receipt without its times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        found[path.name] = path.read_bytes()
        if path.name == "fusion_report.json":
            values = json.loads(path.read_text())
            for item in (values, *values["ffns"]):
                del item["seconds"]
            found[path.name] = values
    return found


def check_equal(model, tmp_path, config=HALF, dtype="auto", shards="10KB"):
    """Saves a stock model, fuses it both ways, and compares all that was written."""
    stock, plain, streamed = (tmp_path / name for name in ("stock", "plain", "streamed"))
    if model is not None:
        model.save_pretrained(stock, max_shard_size="15KB")
    fuse_model(load_stock_model(str(stock), dtype=dtype), config).save_pretrained(plain, max_shard_size=shards)
    report = fuse_checkpoint(str(stock), streamed, config, dtype=dtype, max_shard_size=shards)
    assert files_of(streamed) == files_of(plain)
    assert {path.name for path in tmp_path.iterdir()} == {"stock", "plain", "streamed"}
    assert report.to_json() == (streamed / "fusion_report.json").read_text()


@pytest.mark.parametrize("name", every_family())
def test_families(name, tmp_path):
    check_equal(tiny_family_model(FAMILIES[name]), tmp_path)


@pytest.mark.parametrize("name", TINY_HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_dtypes(name, dtype, tmp_path):
    check_equal(tiny_model(name).to(dtype), tmp_path)
    for folder in ("plain", "streamed"):
        shutil.rmtree(tmp_path / folder)
    check_equal(None, tmp_path, dtype="float32", shards="5GB")


@pytest.mark.parametrize("power", [0.0, 0.5])
@pytest.mark.parametrize("name", ["bert", "mixtral"])
def test_powers_of_p(name, power, tmp_path):
    check_equal(tiny_family_model(FAMILIES[name]), tmp_path, replace(HALF, power=power))


def test_a_body_becomes_a_model_with_its_names(tmp_path):
    """Checkpoints of a body alone, or of a head that only the config names."""
    model = tiny_model("roberta", transformers.RobertaModel)
    check_equal(model, tmp_path)
    for folder in ("plain", "streamed"):
        shutil.rmtree(tmp_path / folder)
    config = tmp_path / "stock" / "config.json"
    config.write_text(config.read_text().replace("RobertaModel", "RobertaForMaskedLM"))
    check_equal(None, tmp_path)
