"""Runs a notebook from top to bottom in a fresh kernel.

`python tests/run_notebook.py notebooks/*.ipynb` runs notebooks and saves what they put out.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

# What other packages say wherever they are used, and what has nothing to do with a notebook.
_BEFORE = "; ".join(
    (
        "import sys, warnings",
        "sys.modules['torchao'] = None",  # transformers imports it where it is there, and it writes about its parts
        "warnings.filterwarnings('ignore', 'IProgress not found')",  # tqdm without ipywidgets
        "warnings.filterwarnings('ignore', '`is_gradient_checkpointing` is deprecated')",  # as in pyproject.toml
        "del sys, warnings",
    )
)

# Quiet and on one core, like the tests, which run beside it.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def run_notebook(path: Path) -> nbformat.NotebookNode:
    """Runs a notebook where it lies, as Jupyter does.

    Args:
        path: The notebook.

    Returns:
        The notebook with its new outputs. The file is as it was.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=None,
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=[f"--IPKernelApp.exec_lines={_BEFORE}"],
        resources={"metadata": {"path": str(path.parent)}},
    ).execute(env=os.environ | _ENVIRONMENT)
    # Of the kernel's description, what does not change with every Python.
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        nbformat.write(run_notebook(Path(argument)), argument)
