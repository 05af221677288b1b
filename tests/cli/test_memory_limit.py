"""Too little memory: one line that says how much is needed, exit code 1, and nothing half-written."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import tiny_model
from tiny_text import tiny_texts, tiny_tokenizer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux's")

LIMITED = """
import resource, sys
from pathlib import Path
import psutil
import hf_mlp_fusion.fusion, hf_mlp_fusion.modeling.loading, transformers.models.gpt2.modeling_gpt2
from hf_mlp_fusion.cli import main
import torch
torch.set_num_threads(1)
now = psutil.Process().memory_info().vms
limit = now + int(float(sys.argv[1]) * 1e6)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.argv = ["hf-mlp-fusion", *sys.argv[2:]]
main()
"""


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """A GPT-2 that is small but for its FFNs: 1 layer, 16/6144, whose moments are 300 MB."""
    path = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40, "n_inner": 6144}
    tokens = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=99, **sizes, **tokens)).save_pretrained(path)
    tiny_tokenizer("gpt2").save_pretrained(path)
    (path / "texts.txt").write_text("\n".join(tiny_texts(20)), encoding="utf-8")
    return path


def run(megabytes, *arguments):
    command = [sys.executable, "-c", LIMITED, str(megabytes), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("megabytes", [pytest.param(600, marks=pytest.mark.every), 200])
def test_an_address_space_that_is_too_small_gives_one_line(model_path, tmp_path, megabytes):
    out = tmp_path / "out"
    done = run(megabytes, "fuse", model_path, out, "--texts", model_path / "texts.txt", "--width", "32")
    assert done.returncode == 1, done.stderr
    *others, last = done.stderr.strip().splitlines()
    assert last.startswith("error: "), done.stderr
    assert "memory" in last
    assert not [line for line in others if line.startswith(("Traceback", "error:"))], done.stderr
    if megabytes == 600:  # enough to load the model, and to see that it will not do
        assert "this fusion needs about 1." in last
        assert "GB of memory, and this machine has" in last
        assert "shorter calibration rows need less" in last
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_fit_is_one_line_before_it_is_loaded(cli, tmp_path, monkeypatch):
    """A cgroup's limit would kill the process without a word."""
    tiny_model("bert").save_pretrained(tmp_path / "bert", max_shard_size="20KB")
    monkeypatch.setattr("hf_mlp_fusion.files.budget.available_bytes", lambda device: 1000)
    code, _, err = cli("fuse", tmp_path / "bert", tmp_path / "out", "--width", "32")
    assert code == 1
    assert f"loading {tmp_path / 'bert'} needs about" in " ".join(err.split())
    assert err.count("error:") == 1
    assert not (tmp_path / "out").exists()
