"""The notebooks run from top to bottom, and were saved with outputs that are fit to be read."""

import re
import resource
from pathlib import Path

import nbformat
import pytest
from run_notebook import run_notebook

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
QUICK = ("1_quickstart",)
BUILT = {"7_llama": "smollm2-135m-instruct", "8_encoder": "all-mpnet-base-v2"}
"""Notebooks on what `make models` builds."""
LIMIT = 480.0
"""Seconds that a notebook may take on a core of its own: of CPU time, which a busy machine does not make longer."""
# Such as /home/name or C:\Users; no part of a URL or of an HTML tag.
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<])/(?:home|mnt|opt|private|root|srv|tmp|usr|Users|var|work)/|\b[A-Z]:\\")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook):
    """What the cells put out, in words."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            yield output.text if output.output_type == "stream" else str(output.get("data", {}).get("text/plain", ""))
            yield str(output.get("data", {}).get("text/html", ""))


def check_outputs(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert outputs
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    noise = [output.text for output in outputs if output.output_type == "stream" and output.name != "stdout"]
    assert not noise  # warnings, progress bars
    for text in texts(notebook):
        assert "Traceback" not in text
        assert not ABSOLUTE_PATH.search(text)
        assert str(Path.home()) not in text
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))  # every cell, once, in this order


def test_absolute_paths_are_told_from_other_slashes():
    assert all(ABSOLUTE_PATH.search(text) for text in ("/home/me/x", "'/tmp/a'", "in /root/b", r"C:\Users"))
    assert not any(ABSOLUTE_PATH.search(text) for text in ("https://x.org/home/a", "ms/step", "a/tmp/b", "</tmp/>"))


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= {*QUICK, *BUILT}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs(path):
    assert path.stat().st_size < 200_000
    check_outputs(nbformat.read(path, as_version=4))


@pytest.mark.usefixtures("minilm_path")
@pytest.mark.timeout(8 * LIMIT)
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.real) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_runs(path, request, monkeypatch):
    if path.stem not in QUICK:
        models = request.getfixturevalue("real_model_path")("roberta-mini").parent
        monkeypatch.setenv("HF_MLP_FUSION_TEST_MODELS", str(models))
    if path.stem in BUILT:
        built = request.getfixturevalue("real_model_path")(BUILT[path.stem]).parent
        monkeypatch.setenv("HF_MLP_FUSION_BUILT_MODELS", str(built))
    beside = sorted(path.parent.iterdir())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    notebook = run_notebook(path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert 1 < after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < LIMIT
    check_outputs(notebook)
    assert sorted(path.parent.iterdir()) == beside  # what it writes goes into temporary folders
