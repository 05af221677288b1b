"""Two processes train fused models: DDP, and FSDP2 as transformers shards at loading. On the CPU, over gloo.

Accelerate has FSDP2 on GPUs alone: `distributed_script.py fsdp:...` is for them.
"""

import json
import subprocess
import sys

import distributed_script as script
import pytest
import torch
import transformers

from hf_mlp_fusion import FusionConfigError

RUNS = ("ddp:gpt2", "ddp+bf16:switch_transformers", "sharded:roberta", "sharded+bf16:gpt2")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of all runs, and the line of each."""
    folder = tmp_path_factory.mktemp("distributed")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, script.__file__, *RUNS, "--out", str(folder)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"run"')]
    return folder, {line["run"]: line for line in lines}


@pytest.mark.parametrize("run", RUNS)
def test_p_stays_and_checkpoints_are_whole(results, run):
    _, lines = results
    line = lines[run]
    assert "error" not in line, line["error"]
    assert line["processes"] == 2
    assert (line["shards"] > 0) == run.startswith("sharded")
    assert line["wrapped"].startswith("FSDP" if run.startswith("sharded") else "DistributedDataParallel")
    assert sum(line["losses"][2:]) < sum(line["losses"][:2])  # two epochs of two steps
    assert line["scalings"] > 0
    assert line["scalings kept"]
    assert line["scalings stored"] == ["I32"]
    assert line["weights stored"] == ["F32"]
    assert line["processes agree"]
    assert line["receipt"]
    assert line["checkpoint off by"] == line["resumed off by"] == 0.0


@pytest.mark.parametrize(("run", "source"), [("ddp:gpt2", "gpt2"), ("sharded:roberta", "roberta")])
def test_two_processes_train_as_one(results, run, source, tmp_path):
    folder, lines = results
    alone = script.train(script.fused_model(source), tmp_path)
    together = type(alone.model).from_pretrained(folder / run.replace(":", "-") / "run" / "checkpoint-4").state_dict()
    assert script.difference(alone.model.state_dict(), together) < 1e-6
    losses = [entry["loss"] for entry in alone.state.log_history if "loss" in entry]
    assert lines[run]["losses"] == pytest.approx(losses, rel=1e-6)


def test_a_checkpoint_of_shards_loads_by_the_auto_class(results):
    folder, _ = results
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "sharded+bf16-gpt2" / "run" / "checkpoint-4")
    assert type(model).__name__ == "FusedGPT2LMHeadModel"


def test_weights_in_the_first_process_alone_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    fused = script.fused_model("gpt2")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(FusionConfigError, match="fsdp_cpu_ram_efficient_loading"):
            type(fused).from_pretrained(None, config=fused.config, state_dict=fused.state_dict())
    finally:
        torch.distributed.destroy_process_group()
