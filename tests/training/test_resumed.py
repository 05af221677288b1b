"""Tuning that was stopped goes on where it was, and ends as if it had not been."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file
from tiny_text import tiny_texts, tiny_tokenizer

from hf_mlp_fusion import FusionConfig, FusionConfigError, fuse_model
from hf_mlp_fusion.training import TuningTrainer, tune_model, work

pytestmark = pytest.mark.filterwarnings("ignore::hf_mlp_fusion.FusionWarning")

OPTIONS = {"target": "logits", "epochs": 3, "batch_size": 4, "max_length": 12, "learning_rate": 1e-3}


def stop_at(monkeypatch, step):
    """Makes training stop as Ctrl-C does, in the middle of a step."""
    loss = TuningTrainer.training_step
    count = []

    def once(self, *args, **kwargs):
        count.append(1)
        if len(count) == step:
            raise KeyboardInterrupt
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(TuningTrainer, "training_step", once)


@pytest.fixture
def checkpoints(monkeypatch):
    """One after each step."""
    monkeypatch.setattr(work, "_SAVE_SECONDS", 0.0)


@pytest.mark.usefixtures("checkpoints")
@pytest.mark.parametrize("family", ["gpt2", pytest.param("roberta", marks=pytest.mark.every)])
@pytest.mark.parametrize("stop", [pytest.param(3, marks=pytest.mark.every), 9])
def test_the_result_is_the_same_bit_for_bit(family, stop, tmp_path, monkeypatch, caplog):
    model, tokenizer = tiny_model(family), tiny_tokenizer(family)
    fused = fuse_model(model, FusionConfig(width=16))
    whole, again = copy.deepcopy(fused), copy.deepcopy(fused)
    place = tmp_path / "work"
    expected = tune_model(whole, model, tiny_texts(60), tokenizer, **OPTIONS)
    with monkeypatch.context() as patched:
        stop_at(patched, stop)
        with pytest.raises(KeyboardInterrupt):
            tune_model(fused, model, tiny_texts(60), tokenizer, work=place, **OPTIONS)
    newest = place / f"checkpoint-{stop - 1}"
    assert [path.name for path in place.glob("checkpoint-*")] == [newest.name]
    broken = place / f"checkpoint-{stop}"  # killed while it was written
    broken.mkdir()
    (broken / "trainer_state.json").write_text('{"glob')
    result = tune_model(again, model, tiny_texts(60), tokenizer, work=place, **OPTIONS)
    assert f"going on from step {stop - 1}" in caplog.text
    assert result == expected
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in again.state_dict().items())
    one, other = (item.fusion_report.tuning[0] for item in (whole, again))
    assert (one.steps, one.divergence_after) == (other.steps, other.divergence_after)


@pytest.mark.usefixtures("checkpoints")
def test_another_run_does_not_go_on_from_there(tmp_path, monkeypatch):
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer("gpt2")
    fused = fuse_model(model, FusionConfig(width=16))
    fresh, place = copy.deepcopy(fused), tmp_path / "work"
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        with pytest.raises(KeyboardInterrupt):
            tune_model(fused, model, tiny_texts(60), tokenizer, work=place, **OPTIONS)
    for changes, texts, what in (
        ({"learning_rate": 2e-3, "seed": 1}, tiny_texts(60), "learning rate, seed"),
        ({}, tiny_texts(61), "texts"),
    ):
        with pytest.raises(FusionConfigError, match=f"was stopped and had other {what}: repeat that one, or delete"):
            tune_model(fresh, model, texts, tokenizer, work=place, **OPTIONS | changes)
    with pytest.raises(FusionConfigError, match="had other weights"):  # those that were tuned for two steps
        tune_model(fused, model, tiny_texts(60), tokenizer, work=place, **OPTIONS)
    with work.open_work(place), pytest.raises(FusionConfigError, match="another run is at work in"):
        tune_model(fresh, model, tiny_texts(60), tokenizer, work=place, **OPTIONS)
    assert (place / "checkpoint-2").is_dir()


def test_what_is_not_worth_keeping_is_cleared_away(tmp_path, monkeypatch):
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer("gpt2")
    fused = fuse_model(model, FusionConfig(width=16))
    stop_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        tune_model(fused, model, tiny_texts(60), tokenizer, work=tmp_path / "work", **OPTIONS)
    assert not list(tmp_path.iterdir())
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(FusionConfigError, match="is not empty, and holds no tuning"):
        tune_model(fused, model, tiny_texts(60), tokenizer, work=tmp_path, **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.usefixtures("checkpoints")
def test_what_the_model_wrote_is_written_once(tmp_path, monkeypatch):
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer("gpt2")
    fused = fuse_model(model, FusionConfig(width=16))
    again, place = copy.deepcopy(fused), tmp_path / "work"
    options = OPTIONS | {"steps": 4}
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        with pytest.raises(KeyboardInterrupt):
            tune_model(fused, model, "sampled", tokenizer, work=place, **options)
    texts = json.loads((place / "sampled.json").read_text())["texts"]
    assert len(texts) == 256
    monkeypatch.setattr("hf_mlp_fusion.training.tune.sampled_texts", lambda *_: pytest.fail("written again"))
    tune_model(again, model, "sampled", tokenizer, work=place, **options)
    assert again.fusion_report.tuning[0].steps == 4


KILLED = """
import sys
from hf_mlp_fusion.training import work
work._SAVE_SECONDS = 0.0
from hf_mlp_fusion.cli import main
sys.argv[0] = "hf-mlp-fusion"
main()
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with a stock model, what fusion made of it, and texts."""
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer("gpt2")
    model.save_pretrained(tmp_path / "stock")
    model = type(model).from_pretrained(tmp_path / "stock")
    fuse_model(model, FusionConfig(width=16)).save_pretrained(tmp_path / "fused")
    for name in ("stock", "fused"):
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "texts.txt").write_text("\n".join(tiny_texts(60)))
    return tmp_path


@pytest.mark.usefixtures("checkpoints")
def test_a_command_that_is_stopped_says_how_it_goes_on(cli, folder, monkeypatch):
    stop_at(monkeypatch, 3)
    command = ("tune", folder / "fused", folder / "out", "--texts", folder / "texts.txt", "--batch-size", "2")
    code, _, err = cli(*command)
    assert code == 130
    assert "the same command goes on from here" in err
    assert "stopped; nothing was left half-written" in err
    assert (folder / "out.tuning" / "checkpoint-2").is_dir()
    code, _, err = cli(*command, "--seed", "1")
    assert code == 1
    assert (
        "out.tuning holds a tuning that was stopped and had other seed: repeat that one, or delete the folder" in err
    )
    code, _, err = cli(*command)
    assert code == 0, err
    assert sorted(path.name for path in folder.iterdir()) == ["fused", "out", "stock", "texts.txt"]


@pytest.mark.every
def test_a_command_that_was_killed_goes_on(cli, folder):
    options = ["--texts", folder / "texts.txt", "--target", "logits", "--batch-size", "2", "--max-length", "12"]
    code, _, err = cli("tune", folder / "fused", folder / "whole", *options, "--steps", "60")
    assert code == 0, err
    command = ["tune", folder / "fused", folder / "out", *options, "--steps", "60"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *map(str, command)], env=environment, stderr=subprocess.DEVNULL
    )
    place = folder / "out.tuning"
    while not saved(place) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert saved(place)
    code, out, err = cli(*command)
    assert code == 0, err
    assert "Perplexity" in out
    weights = [load_file(folder / name / "model.safetensors") for name in ("whole", "out")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert sorted(path.name for path in folder.iterdir()) == ["fused", "out", "stock", "texts.txt", "whole"]


def saved(place: Path) -> bool:
    """Whether a checkpoint is there whole."""
    return work.Work(place, kept=True).checkpoint() is not None
