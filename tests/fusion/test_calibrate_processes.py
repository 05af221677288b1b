"""Calibration by two processes, over gloo: that of one, up to the order of sums.

`accelerate launch` starts them as torch does, here on the CPU.
"""

import os
import subprocess
import sys

import pytest
import torch
from any_family import tiny_family_model
from conftest import tiny_model
from safetensors.torch import load_file
from tiny_batches import batches

from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.fusion import calibrate_checkpoint

pytestmark = pytest.mark.every  # libraries load three times

SCRIPT = """
import sys
import torch
from hf_mlp_fusion.fusion import calibrate_checkpoint
for name in sys.argv[2:]:
    place = f"{sys.argv[1]}/{name}"
    calibrate_checkpoint(f"{place}/model", f"{place}/two", torch.load(f"{place}/data"))
torch.distributed.destroy_process_group()
"""
NAMES = ("gpt2", "mixtral")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder for each model: it, its data, and what two processes made of it."""
    folder = tmp_path_factory.mktemp("processes")
    for name in NAMES:
        model = tiny_model(name) if name == "gpt2" else tiny_family_model(FAMILIES[name])
        model.save_pretrained(folder / name / "model")
        torch.save(batches(model, count=9), folder / name / "data")
    (folder / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run(
        [*launch, folder / "script.py", folder, *NAMES],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_make_what_one_makes(places, name):
    place = places / name
    calibrate_checkpoint(str(place / "model"), place / "one", torch.load(place / "data"))
    assert (place / "one" / "statistics.json").read_text() == (place / "two" / "statistics.json").read_text()
    paths = sorted((place / "one").glob("*.safetensors"))
    assert len(paths) == len(list((place / "two").glob("*.safetensors")))
    for path in paths:
        expected, found = load_file(path), load_file(place / "two" / path.name)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            if key.startswith(("held_out", "few", "count")):
                assert torch.equal(found[key], tensor), (path.name, key)
            else:
                torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-6 * float(tensor.abs().max()))
