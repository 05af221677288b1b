"""The README's code runs, and its commands exist."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from hf_mlp_fusion.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_blocks_run(tmp_path, monkeypatch, minilm_path, capsys):
    assert len(blocks("python")) == 2
    monkeypatch.chdir(tmp_path)
    for code in blocks("python"):  # the second loads what the first has saved
        code = code.replace("sentence-transformers/all-MiniLM-L6-v2", str(minilm_path))
        exec(compile(code, "README.md", "exec"), {})
    assert re.fullmatch(r"\d+ -> \d+\n", capsys.readouterr().out)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


COMMANDS = [line.split("#")[0] for block in blocks("bash") for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist(line):
    program, verb, *arguments = shlex.split(line)
    if program == "make":
        assert f"\n{verb}:" in (Path(__file__).parents[1] / "Makefile").read_text()
        return
    assert program == "hf-mlp-fusion"
    command = get_command(app).commands[verb]
    if verb == "bench":
        verb, *arguments = arguments
        command = command.commands[verb]
    command.make_context(verb, arguments)  # raises on unknown options and missing arguments
