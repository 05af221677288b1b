"""Fusing shard by shard: stopped and gone on with, in little memory, refused in one line where it cannot be."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
from conftest import tiny_model
from safetensors.torch import load_file, save_file
from test_stream_families import HALF, check_equal, files_of

from hf_mlp_fusion import BrokenCheckpointError, FusionConfig, FusionConfigError, UnsupportedModelError, fuse_model
from hf_mlp_fusion.errors import DiskLimitError
from hf_mlp_fusion.modeling.building import empty_model
from hf_mlp_fusion.modeling.loading import load_stock_model
from hf_mlp_fusion.streaming import fuse_checkpoint, passes
from hf_mlp_fusion.streaming.shards import Shards

SCRIPT = Path(__file__).with_name("streamed.py")


@pytest.fixture
def stock(tmp_path):
    """A tiny checkpoint of several shards."""
    tiny_model("roberta").save_pretrained(tmp_path / "stock", max_shard_size="15KB")
    return tmp_path / "stock"


def llama(folder, hidden, units, layers):
    """A checkpoint as Llama's, of random weights in half precision."""
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=units,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=500,
    )
    config.dtype = torch.bfloat16
    model = empty_model(transformers.LlamaForCausalLM, config).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in model.state_dict().items()}
    for tensor in state.values():
        tensor.uniform_(-0.1, 0.1, generator=generator)
    model.save_pretrained(folder, state_dict=state, max_shard_size="50MB")
    return 3 * hidden * units * 2


def command(*arguments):
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def leave_after(monkeypatch, count):
    """Has a fusion stopped after so many FFNs."""
    reduce, done = passes._reduce, []

    def counted(*arguments):
        if len(done) == count:
            raise KeyboardInterrupt
        done.append(1)
        return reduce(*arguments)

    monkeypatch.setattr(passes, "_reduce", counted)
    return done


@pytest.mark.parametrize("lost", [False, True], ids=["", "a shard was lost"])
def test_what_was_stopped_goes_on(lost, stock, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    fuse_checkpoint(str(stock), whole, HALF, max_shard_size="10KB")
    with monkeypatch.context() as patch:
        leave_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            fuse_checkpoint(str(stock), stopped, HALF, max_shard_size="10KB")
    assert not stopped.exists()
    assert (tmp_path / "stopped.streaming").is_dir()
    if lost:
        next((tmp_path / "stopped.streaming").glob("*.safetensors")).unlink()
    done = leave_after(monkeypatch, 99)
    fuse_checkpoint(str(stock), stopped, HALF, max_shard_size="10KB")
    assert len(done) == (3 if lost else 1)
    assert files_of(stopped) == files_of(whole)
    assert not (tmp_path / "stopped.streaming").exists()


def test_what_was_stopped_is_not_mixed_with_another(stock, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        leave_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            fuse_checkpoint(str(stock), out, HALF)
    with pytest.raises(
        FusionConfigError, match=r"stopped and had other recipe: repeat that one, or delete the folder"
    ):
        fuse_checkpoint(str(stock), out, FusionConfig(width=16))
    shard = next(stock.glob("*.safetensors"))
    os.utime(shard, (1, 1))
    with pytest.raises(FusionConfigError, match="had other files"):
        fuse_checkpoint(str(stock), out, HALF)
    (tmp_path / "out.streaming" / "run.json").unlink()
    (tmp_path / "out.streaming" / ".lock").unlink()
    with pytest.raises(FusionConfigError, match="is not empty, and holds no fusion"):
        fuse_checkpoint(str(stock), out, HALF)


def test_two_runs_do_not_write_to_one_place(stock, tmp_path, monkeypatch):
    reduce = passes._reduce

    def nested(*arguments):
        with pytest.raises(FusionConfigError, match="another run is at work"):
            fuse_checkpoint(str(stock), tmp_path / "out", HALF)
        return reduce(*arguments)

    monkeypatch.setattr(passes, "_reduce", nested)
    fuse_checkpoint(str(stock), tmp_path / "out", HALF)


@pytest.mark.every
def test_killed_at_ten_random_moments(tmp_path):
    source, out, work = tmp_path / "stock", tmp_path / "out", tmp_path / "out.streaming"
    llama(source, 64, 1024, 8)
    subprocess.run(command(source, tmp_path / "whole"), check=True, capture_output=True)
    chance, killed = random.Random(10), 0
    while killed < 10:
        with subprocess.Popen(command(source, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not (work / "done.jsonl").exists() and process.poll() is None:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
        if out.exists():  # it was done before
            assert files_of(out) == files_of(tmp_path / "whole")
            out.rename(tmp_path / f"out{killed}")
    subprocess.run(command(source, out), check=True, capture_output=True)
    assert files_of(out) == files_of(tmp_path / "whole")
    assert not work.exists()
    assert not [*tmp_path.glob(".out*")]


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read in /proc")
@pytest.mark.every
def test_memory_does_not_grow_with_the_model(tmp_path):
    """Against two layers of the same width, which have all libraries and the work on one FFN in memory as well."""
    peaks, stored = [], []
    for layers in (2, 64):
        folder = tmp_path / str(layers)
        ffn = llama(folder, 1024, 512, layers)
        run = subprocess.run(
            command(folder, tmp_path / "out" / folder.name, "last:2"), check=True, capture_output=True
        )
        peaks.append(int(run.stdout.split()[-1]))
        stored.append(sum(path.stat().st_size for path in folder.glob("*.safetensors")))
    assert stored[1] - stored[0] > 62 * 9e6
    assert peaks[1] < 1.5e9 + 3 * ffn
    assert peaks[1] - peaks[0] < 0.1 * (stored[1] - stored[0])


def test_a_full_disk_is_told_before(stock, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(
        DiskLimitError, match=r"fusing .*stock needs 0 MB of disk, and .* has 0 MB free: free some, or"
    ):
        fuse_checkpoint(str(stock), tmp_path / "out", HALF)
    assert [path.name for path in tmp_path.iterdir()] == ["stock"]


def test_it_is_refused_what_plain_fusion_refuses(stock, tmp_path):
    out = tmp_path / "out"
    fused = tmp_path / "fused"
    fuse_checkpoint(str(stock), fused, HALF)
    with pytest.raises(UnsupportedModelError, match="is fused already"):
        fuse_checkpoint(str(fused), out, HALF)
    with pytest.raises(FusionConfigError, match="is not empty"):
        fuse_checkpoint(str(stock), fused, HALF)
    fuse_checkpoint(str(stock), fused, FusionConfig(width=16), overwrite=True)
    with pytest.raises(FusionConfigError, match="keeps every unit"):
        fuse_checkpoint(str(stock), out, FusionConfig(width=64))
    with pytest.raises(FusionConfigError, match="needs calibration data"):
        fuse_checkpoint(str(stock), out, FusionConfig(width=16, refit="output"))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((stock / "config.json").read_text())
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(
        UnsupportedModelError, match="has no safetensors weights, and pickles are not read: convert it"
    ):
        fuse_checkpoint(str(pickled), out, HALF)
    assert not out.exists()
    assert not (tmp_path / "out.streaming").exists()


def changed(stock, change):
    """A checkpoint in one file, something in it changed."""
    tensors = {name: tensor for path in stock.glob("*.safetensors") for name, tensor in load_file(path).items()}
    change(tensors)
    for path in [*stock.glob("*.safetensors*")]:
        path.unlink()
    save_file(tensors, stock / "model.safetensors", {"format": "pt"})


def test_nan_is_told(stock, tmp_path):
    changed(stock, lambda tensors: tensors["roberta.encoder.layer.2.output.dense.weight"].fill_(float("nan")))
    with pytest.raises(FusionConfigError, match=r"the weights of encoder\.layer\.2 hold NaN or infinity"):
        fuse_checkpoint(str(stock), tmp_path / "out", HALF)


def test_weights_that_loading_makes_up_are_refused(stock, tmp_path):
    changed(stock, lambda tensors: tensors.pop("roberta.encoder.layer.1.output.dense.weight"))
    with pytest.raises(BrokenCheckpointError, match="lacks 1 of the"):
        fuse_checkpoint(str(stock), tmp_path / "out", HALF)


@pytest.mark.filterwarnings("ignore:.*has no weights for pooler")
def test_a_pooler_that_loading_makes_up_is_refused(tmp_path):
    source = tmp_path / "stock"
    tiny_model("bert", transformers.BertModel).save_pretrained(source)

    def drop(tensors):
        for name in [name for name in tensors if name.startswith("pooler")]:
            del tensors[name]

    changed(source, drop)
    with pytest.raises(UnsupportedModelError, match=r"has no 'pooler.dense.bias', which loading would make up: leave"):
        fuse_checkpoint(str(source), tmp_path / "out", HALF)


@pytest.mark.parametrize("name", ["gpt2", "roberta"])
def test_tied_weights_that_are_stored_twice(name, tmp_path):
    model = tiny_model(name)
    model.save_pretrained(tmp_path / "stock")
    head, table = next(iter(model.all_tied_weights_keys.items()))
    changed(tmp_path / "stock", lambda tensors: tensors.update({head: tensors.get(table, tensors.get(head)).clone()}))
    check_equal(None, tmp_path)
    changed(tmp_path / "stock", lambda tensors: tensors[head].add_(1))
    if table in load_file(tmp_path / "stock" / "model.safetensors"):
        with pytest.raises(UnsupportedModelError, match="are one tensor by the config"):
            fuse_model(load_stock_model(str(tmp_path / "stock")), HALF)
        with pytest.raises(UnsupportedModelError, match="are one tensor by the config, and two in the checkpoint"):
            fuse_checkpoint(str(tmp_path / "stock"), tmp_path / "out", HALF)


def test_old_names(tmp_path):
    model = tiny_model("bert")
    model.save_pretrained(tmp_path / "stock")

    def rename(tensors):
        for name in [name for name in tensors if "LayerNorm" in name]:
            tensors[name.replace("weight", "gamma").replace("bias", "beta")] = tensors.pop(name)

    changed(tmp_path / "stock", rename)
    check_equal(None, tmp_path)


def test_tensors_are_copied_in_pieces(stock, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_mlp_fusion.streaming.stored.CHUNK_BYTES", 100)
    check_equal(None, tmp_path)


def test_shards_are_what_safetensors_writes(tmp_path):
    kinds = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    kinds += (torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    tensors = {f"ä.{number}": torch.arange(12).view(3, 4).to(dtype) for number, dtype in enumerate(kinds)}
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4), "a stack": torch.arange(24.0).view(2, 3, 4)}
    with Shards(tmp_path, {name: tensor.to("meta") for name, tensor in tensors.items()}, "5GB") as shards:
        for name, tensor in tensors.items():
            if name == "a stack":
                for number in (1, 0):
                    shards.write(name, [tensor[number]], number=number)
            else:
                shards.write(name, [tensor[:1], tensor[1:]] if tensor.dim() else [tensor])
    save_file(tensors, tmp_path / "by safetensors", {"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "by safetensors").read_bytes()
    assert shards.missing_bytes == 0


def test_the_command(cli, stock, tmp_path):
    options = ("--width", "0.5", "--multiple-of", "8", "--max-shard-size", "10KB")
    assert cli("fuse", stock, tmp_path / "plain", *options)[0] == 0
    code, out, err = cli("fuse", stock, tmp_path / "streamed", *options, "--stream", "--json")
    assert code == 0, err
    assert json.loads(out)["parameters_after"] < json.loads(out)["parameters_before"]
    assert files_of(tmp_path / "streamed") == files_of(tmp_path / "plain")
    assert len([*(tmp_path / "plain").glob("model-*")]) > 1
    code, _, err = cli("fuse", stock, tmp_path / "out", "--stream", "--sampled")
    assert code == 1
    assert "--stream never runs the model: make statistics of the texts first, with hf-mlp-fusion calibrate" in err
