"""What every command has in common: help that reads by itself, JSON, completion, errors of one line."""

import os
import re
import subprocess
import sys

import pytest
from typer.main import get_command

from hf_mlp_fusion import __version__
from hf_mlp_fusion.cli import app

ROOT = get_command(app)
COMMANDS = {(name,): command for name, command in ROOT.commands.items() if name != "bench"}
COMMANDS |= {("bench", name): command for name, command in ROOT.commands["bench"].commands.items()}


def shown(cli, monkeypatch, *arguments):
    """The help of a command on a terminal of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = cli(*arguments, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    return " ".join(re.sub(r"[─│╭╮╰╯]", " ", out).split())


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_help_explains_every_argument(cli, monkeypatch, names):
    out = shown(cli, monkeypatch, *names)
    command = COMMANDS[names]
    assert " ".join(command.help.split("\n\n")[0].split()) in out
    for parameter in command.params:
        if parameter.name == "help":
            continue
        assert parameter.help.endswith("."), parameter.name
        assert " ".join(parameter.help.split()) in out  # square brackets in it would be lost
        label = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar
        assert label in out
        assert parameter.param_type_name == "option" or label == label.upper()


def test_the_whole_says_what_there_is(cli, monkeypatch):
    out = shown(cli, monkeypatch)
    for name in ROOT.commands:
        assert f" {name} " in out
    assert cli("--version")[1] == f"hf-mlp-fusion {__version__}\n"
    assert "Commands" in shown(cli, monkeypatch, "bench")


def test_results_come_as_json():
    """The card is a file, and figures are JSON lines already."""
    without = {name for name, verb in COMMANDS.items() if not any("--json" in item.opts for item in verb.params)}
    assert without == {("card",), ("bench", "figures")}


MISTAKES = [
    ["demo", "--model", "/none"],
    ["fuse", "/none", "out"],
    ["calibrate", "/none", "statistics"],
    ["calibrate", "/none", "statistics", "--texts", "texts.txt"],
    ["calibrate", "/none", "statistics", "--texts", "texts.txt", "--offload"],
    ["tune", "/none", "out"],
    ["tune", "/none", "out", "--texts", "texts.txt"],
    ["inspect", "/none"],
    ["compare", "/none"],
    ["compare", "/none", "--texts", "texts.txt"],
    ["report", "/none"],
    ["export", "/none", "out"],
    ["card", "/none"],
    ["push", "/none", "owner/name"],
    ["bench", "glue", "/none", "--data", "/none"],
    ["bench", "webnlg", "/none", "--data", "/none"],
    ["bench", "table", "/none"],
    ["bench", "figures", "/none", "fusion"],
    ["bench", "cost", "/none"],
]


def test_every_command_is_tried():
    tried = {tuple(words[: 2 if words[0] == "bench" else 1]) for words in MISTAKES}
    assert tried == set(COMMANDS) - {("families",)}  # which reads nothing of the user's


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_what_is_not_there_is_one_line(cli, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("a text\n")
    code, out, err = cli(*arguments)
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if "error: " in line]
    assert len(lines) == 1
    assert err.strip().splitlines()[-1] == lines[0]
    assert "/none" in lines[0] or "--texts" in lines[0]
    assert "Repo id" not in lines[0]  # what the Hub says of a path helps nobody
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_the_shell_completes():
    asked = {"_HF_MLP_FUSION_COMPLETE": "complete_bash", "COMP_WORDS": "hf-mlp-fusion fuse --over", "COMP_CWORD": "2"}
    command = [sys.executable, "-m", "hf_mlp_fusion.cli"]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | asked)
    assert run.stdout.split() == ["--overwrite"]
