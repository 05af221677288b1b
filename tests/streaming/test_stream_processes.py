"""A checkpoint fused shard by shard by two processes, over gloo, is what one process makes, bit for bit.

`accelerate launch` starts them as torch does, here on the CPU.
"""

import os
import subprocess
import sys

import pytest
from any_family import tiny_family_model
from conftest import tiny_model
from test_stream import leave_after
from test_stream_families import files_of
from tiny_batches import batches

from hf_mlp_fusion import FusionConfig
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.files import read_json
from hf_mlp_fusion.fusion import calibrate_model
from hf_mlp_fusion.modeling.loading import load_stock_model
from hf_mlp_fusion.streaming import fuse_checkpoint

SCRIPT = """
import shutil, sys
import torch
from pathlib import Path
from hf_mlp_fusion import FusionConfig, FusionConfigError
from hf_mlp_fusion.data import Processes
from hf_mlp_fusion.fusion import Statistics
from hf_mlp_fusion.streaming import checkpoint, fuse_checkpoint, work

processes = Processes()
clear = work._clear
def kept(place):
    for path in place.glob("done*.jsonl"):
        shutil.copy(path, place.with_name(place.name + "." + path.name))
    clear(place)
work._clear = kept
write = Statistics.write_course
def noted(self, ffn, metric, course):
    Path(sys.argv[1], f"course.{processes.number}.{ffn.name}").touch()
    write(self, ffn, metric, course)
Statistics.write_course = noted
for name in sys.argv[2:]:
    place = Path(sys.argv[1]) / name
    statistics = place / "statistics"
    given = statistics if statistics.is_dir() else None
    width = "auto:0.5" if name == "searched" else 0.5
    config = FusionConfig(width=width, multiple_of=2, ntk="none")
    fuse_checkpoint(str(place / "stock"), place / "two", config, statistics=given, max_shard_size="10KB")
claim = processes.claimed(Path(sys.argv[1]) / "other", ("run.json",), "fusion", "another OUT")
try:
    with claim:
        raise AssertionError("a folder of other things was taken")
except FusionConfigError as error:
    assert "is not empty" in str(error)
    (Path(sys.argv[1]) / f"refused.{processes.number}").touch()
processes.wait()
torch.distributed.destroy_process_group()
"""
NAMES = ("gpt2", "mixtral", "stopped", "searched")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder for each checkpoint: it, statistics of some, and what two processes made of it."""
    folder = tmp_path_factory.mktemp("processes")
    for name in NAMES:
        place = folder / name
        model = tiny_family_model(FAMILIES["mixtral"]) if name == "mixtral" else tiny_model("gpt2")
        model.save_pretrained(place / "stock", max_shard_size="15KB")
        if name in ("gpt2", "searched"):
            calibrate_model(load_stock_model(str(place / "stock")), place / "statistics", batches(model, count=20))
    with pytest.MonkeyPatch.context() as patch:
        leave_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            fuse(folder / "stopped", "two")
    (folder / "other").mkdir()
    (folder / "other" / "letter.txt").touch()
    (folder / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, folder / "script.py", folder, *NAMES]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


def fuse(place, out):
    given = place / "statistics"
    options = {"statistics": given if given.is_dir() else None, "max_shard_size": "10KB"}
    config = FusionConfig(width="auto:0.5" if place.name == "searched" else 0.5, multiple_of=2, ntk="none")
    return fuse_checkpoint(str(place / "stock"), place / out, config, **options)


@pytest.mark.filterwarnings("ignore::hf_mlp_fusion.FusionWarning")
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_make_what_one_makes(places, name):
    fuse(places / name, "one")
    assert files_of(places / name / "two") == files_of(places / name / "one")
    assert not [*places.glob("*/*.streaming")]


@pytest.mark.parametrize("name", NAMES)
def test_each_did_a_part(places, name):
    lists = [places / name / f"two.streaming.done{number}.jsonl" for number in ("", ".1")]
    first, second = ([line["name"] for line in read_json(path)] for path in lists)
    assert first
    assert second
    assert not set(first) & set(second)


def test_each_eliminated_the_units_of_some(places):
    """For the search too, of which both have the result."""
    first, second = ({path.name.split(".", 2)[2] for path in places.glob(f"course.{n}.*")} for n in (0, 1))
    assert first
    assert second
    assert not first & second


def test_a_refusal_reaches_all(places):
    assert sorted(path.name for path in places.glob("refused.*")) == ["refused.0", "refused.1"]
