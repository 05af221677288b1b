"""Calibration layer by layer, its layers on disk: the statistics of the plain way."""

import json
import logging
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from any_family import tiny_family_model
from conftest import tiny_model
from safetensors.torch import load_file
from tiny_batches import batches

from hf_mlp_fusion.errors import DataError, DiskLimitError, FusionError
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.fusion import calibrate_checkpoint, calibrate_model, statistics
from hf_mlp_fusion.fusion.layer_chain import LayerChain, NotAChainError


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
    equal(files(tmp_path / "plain"), files(tmp_path / "found"))
    assert not (tmp_path / "found.calibrating").exists()


def equal(expected, seen):
    assert expected.keys() == seen.keys()
    for file, tensors in expected.items():
        assert tensors.keys() == seen[file].keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, seen[file][key]), (file, key)


KILLED = """
import os, signal, sys
import torch
import transformers
from hf_mlp_fusion.files import atomic
from hf_mlp_fusion.fusion import calibrate_checkpoint, layer_files, statistics
model, folder, data, last = sys.argv[1:]
whole, count = atomic.whole_file, []

def counted(path):
    count.append(path)
    if len(count) > int(last):
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(path)

layer_files.whole_file = statistics.whole_file = counted
calibrate_checkpoint(model, folder, torch.load(data))
"""


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param((12, 70), marks=pytest.mark.every),
        *(pytest.param((n,), marks=pytest.mark.every) for n in range(2, 80, 9)),
    ],
)
def test_what_was_killed_goes_on_to_the_same_bits(moments, tmp_path):
    """`kill -9` in the middle of files of the moments and of the metric."""
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "model")
    data = batches(model, count=10)
    torch.save(data, tmp_path / "data")
    for last in moments:
        command = [sys.executable, "-c", KILLED, tmp_path / "model", tmp_path / "found", tmp_path / "data", str(last)]
        stopped = subprocess.run(command, check=False, capture_output=True)
        assert stopped.returncode == -signal.SIGKILL, stopped.stderr.decode()[-2000:]
    left = set((tmp_path / "found").glob("*.safetensors"))
    times = {path: path.stat().st_mtime_ns for path in left}
    found = calibrate_checkpoint(str(tmp_path / "model"), tmp_path / "found", data)
    assert {path: path.stat().st_mtime_ns for path in left} == times  # what was done was not done again
    calibrate_model(model, tmp_path / "plain", data)
    equal(files(tmp_path / "plain"), files(tmp_path / "found"))
    assert found.header.whole


def test_layers_that_are_no_chain_run_in_whole_forwards(tmp_path, caplog):
    model = tiny_model("switch_transformers")
    model.save_pretrained(tmp_path / "model")
    data = batches(model, count=3)
    with caplog.at_level(logging.WARNING, "hf_mlp_fusion"):
        calibrate_checkpoint(str(tmp_path / "model"), tmp_path / "found", data, metric="output")
    assert "not one list" in caplog.text
    calibrate_model(model, tmp_path / "plain", data, metric="output")
    # To rounding: FFNs that are no experts run with padding where they run by themselves.
    torch.testing.assert_close(files(tmp_path / "found"), files(tmp_path / "plain"), rtol=1e-4, atol=1e-6)
    with pytest.raises(FusionError, match="write metric='output'"):
        calibrate_checkpoint(str(tmp_path / "model"), tmp_path / "lost", data)


def test_layers_that_look_further_back_are_found_out():
    """The third block adds what the first returned, as models with skips do."""
    model = tiny_model("gpt2").eval()
    blocks = model.transformer.h
    first = []
    blocks[0].register_forward_hook(lambda *arguments: first.append(arguments[-1]))
    blocks[2].register_forward_pre_hook(lambda _, given: (given[0] + first[-1], *given[1:]))
    chain = LayerChain(model, [f"transformer.h.{number}" for number in range(3)])
    (batch,) = batches(model, count=1)
    with chain.standing_in(), torch.no_grad():
        before = {}
        for number in range(2):
            before = chain.run(number, batch, before)
        with pytest.raises(NotAChainError, match="layer 2 needs more"):
            chain.run(2, batch, before)


def test_room_on_the_disk_is_asked_for_first(tmp_path, monkeypatch):
    tiny_model("gpt2").save_pretrained(tmp_path / "model")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**3))
    with pytest.raises(DiskLimitError, match=r"needs .* MB of disk, and .* has 0 MB free"):
        calibrate_checkpoint(str(tmp_path / "model"), tmp_path / "found", batches(tiny_model("gpt2")))


def test_nan_is_told_as_what_it_is(tmp_path):
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.h[2].ln_2.weight[3] = torch.nan
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(DataError, match=r"h\.2\.mlp computes NaN or infinity on calibration batch 1"):
        calibrate_checkpoint(str(tmp_path / "model"), tmp_path / "found", batches(model))


@pytest.mark.parametrize("second", ["plain", "offloaded"])
@pytest.mark.parametrize("first", ["plain", "offloaded"])
def test_two_runs_do_not_write_to_one_place(first, second, tmp_path, monkeypatch):
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "model")
    data, refused = batches(model), []

    def run(kind):
        source, calibrate = (
            (model, calibrate_model) if kind == "plain" else (str(tmp_path / "model"), calibrate_checkpoint)
        )
        return calibrate(source, tmp_path / "found", data)

    write = statistics.Statistics.write

    def nested(*arguments):
        with pytest.raises(FusionError, match=r"another run is at work in .*: wait for it, or name another STATS"):
            run(second)
        refused.append(second)
        return write(*arguments)

    monkeypatch.setattr(statistics.Statistics, "write", nested)
    assert run(first).header.whole
    assert len(refused) == 3  # at each FFN, also after it was refused before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("found")] == ["found"]
    assert run(first).header.whole  # nobody holds it any more


def test_a_folder_of_work_with_other_things_in_it_is_refused(tmp_path):
    place = tmp_path / "found.calibrating"
    place.mkdir()
    (place / "letter.txt").write_text("dear")
    with pytest.raises(
        FusionError, match=r"found.calibrating is not empty, and holds no calibration: name another STATS"
    ):
        calibrate_model(tiny_model("gpt2"), tmp_path / "found", batches(tiny_model("gpt2")))
    assert (place / "letter.txt").read_text() == "dear"


def test_other_things_in_the_folder_are_refused(tmp_path):
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "model")
    calibrate_checkpoint(str(tmp_path / "model"), tmp_path / "found", batches(model))
    with pytest.raises(FusionError, match="another calibration"):
        calibrate_checkpoint(str(tmp_path / "model"), tmp_path / "found", batches(model, count=2))
    with pytest.raises(FusionError, match="holds no statistics"):
        calibrate_checkpoint(str(tmp_path / "model"), tmp_path / "model", batches(model))


def test_what_another_calibration_left_behind_is_not_taken_for_its_own(tmp_path):
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "model")
    data = batches(model)
    (tmp_path / "found.calibrating" / "rows.0").mkdir(parents=True)
    for name in ("rows.json", "rows.safetensors", "state.json"):
        (tmp_path / "found.calibrating" / name).write_text('{"layer": 2, "names": []}')
    calibrate_checkpoint(str(tmp_path / "model"), tmp_path / "found", data)
    calibrate_model(model, tmp_path / "plain", data)
    equal(files(tmp_path / "plain"), files(tmp_path / "found"))


def test_a_checkpoint_of_the_body_alone_is_calibrated_as_that(tmp_path):
    """Sentence encoders name the head that they were pretrained with, and have none."""
    model = tiny_model("bert", transformers.BertModel)
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    data = batches(model)
    found = calibrate_checkpoint(str(tmp_path / "model"), tmp_path / "found", data)
    assert found.header.metric == "output"
    calibrate_model(model, tmp_path / "plain", data)
    equal(files(tmp_path / "plain"), files(tmp_path / "found"))
