"""What the Hub would refuse, and a Hub that cannot be reached: one line each."""

import os
import subprocess
import sys

import pytest
from conftest import tiny_model

from hf_mlp_fusion import FusionConfig, FusionConfigError, fuse_model
from hf_mlp_fusion.errors import HubError
from hf_mlp_fusion.hub import write_card

UNREACHABLE = """
import sys
import hf_mlp_fusion
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1])
for push in (
    lambda: model.push_to_hub("owner/name"),
    lambda: model.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="owner/name"),
):
    try:
        push()
    except hf_mlp_fusion.errors.HubError as error:
        print(error)
"""


@pytest.fixture
def folder(tmp_path):
    fuse_model(tiny_model("bert"), FusionConfig(width=16)).save_pretrained(tmp_path / "fused")
    return tmp_path / "fused"


@pytest.mark.parametrize(
    ("name", "near"),
    [("foo", "apache-2.0, mit, "), ("Apache 2.0", "apache-2.0, "), ("MIT", "mit, "), ("llama-3", "llama3")],
)
def test_licences_that_the_hub_does_not_know(folder, cli, name, near):
    with pytest.raises(FusionConfigError, match=f"knows no licence '{name}': write {near}"):
        write_card(folder, license=name, base_model="owner/base")
    code, out, err = cli("push", folder, "owner/name", "--dry-run", "--license", name, "--base-model", "owner/base")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert not (folder / "README.md").exists()


@pytest.mark.parametrize("name", ["apache-2.0", "other", "llama3.2", "openrail++"])
def test_licences_that_it_knows(folder, name):
    assert f"license: {name}\n" in write_card(folder, license=name, base_model="owner/base").read_text()


def test_a_model_pushed_offline(tmp_path):
    model = fuse_model(tiny_model("bert"), FusionConfig(width=16))
    with pytest.raises(
        HubError, match=r"^owner/name could not be pushed to, .*: Cannot reach .*offline mode"
    ) as raised:
        model.push_to_hub("owner/name")
    assert "\n" not in str(raised.value)
    with pytest.raises(HubError, match=r"^owner/name could not be pushed to"):
        model.save_pretrained(tmp_path, push_to_hub=True, repo_id="owner/name")


def test_a_model_pushed_to_a_hub_that_is_not_there(folder, tmp_path):
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_" + 20 * "x"}
    run = subprocess.run(
        [sys.executable, "-c", UNREACHABLE, folder, tmp_path / "saved"],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("owner/name could not be pushed to, and no file there was changed: ")
        assert "xxxx" not in line
