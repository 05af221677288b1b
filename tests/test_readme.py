"""The README's code runs, and the commands that it and the pages show exist."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from hf_mlp_fusion.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [README, *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))]


def blocks(language, text):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_python_blocks_run(tmp_path, monkeypatch, minilm_path, capsys):
    assert len(blocks("python", README)) == 2
    monkeypatch.chdir(tmp_path)
    for code in blocks("python", README):  # the second loads what the first has saved
        code = code.replace("sentence-transformers/all-MiniLM-L6-v2", str(minilm_path))
        exec(compile(code, "README.md", "exec"), {})
    assert re.fullmatch(r"\d+ -> \d+\n", capsys.readouterr().out)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_the_readme_calls_nothing_but_make_and_the_package():
    lines = [line for block in blocks("bash", README) for line in block.splitlines() if line.strip()]
    assert {line.split()[0] for line in lines} == {"make", "hf-mlp-fusion"}


def commands():
    """The lines of all shell blocks that call make or this package, without comments, each once."""
    lines = "\n".join(block for text in PAGES for block in blocks("bash", text)).replace("\\\n", " ").splitlines()
    commands = (line.split("#")[0].strip() for line in lines)
    return sorted({line for line in commands if re.match(r"(make|hf-mlp-fusion) [a-z]", line)})


@pytest.mark.parametrize("line", commands())
def test_commands_exist(line):
    program, verb, *arguments = shlex.split(line)
    if program == "make":
        assert f"\n{verb}:" in (ROOT / "Makefile").read_text()
        return
    command = get_command(app).commands[verb]
    if verb == "bench":
        verb, *arguments = arguments
        command = command.commands[verb]
    command.make_context(verb, arguments)  # raises on unknown options and missing arguments
