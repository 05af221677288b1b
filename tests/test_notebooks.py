"""The notebooks run from top to bottom, and were saved with outputs and without errors."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.usefixtures("minilm_path")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert all(output["output_type"] != "error" for output in outputs)
    namespace = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), path.name, "exec"), namespace)
    printed = capsys.readouterr().out
    assert "computes the same bits: True" in printed
    assert len(printed.splitlines()) == sum("".join(output["text"]).count("\n") for output in outputs)
