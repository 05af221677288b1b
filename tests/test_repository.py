"""What the repository says of itself in several places is the same everywhere."""

import ast
import pkgutil
import re
import tomllib
from pathlib import Path

import yaml
from python_matrix import PROMISED

import hf_mlp_fusion

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_the_workflow_tests_the_pythons_that_are_promised():
    jobs = read(".github/workflows/ci.yml")["jobs"]
    promised = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if "Python :: 3" in name]
    assert jobs["test"]["strategy"]["matrix"]["python"] == promised
    assert promised == [*PROMISED]
    assert PROJECT["requires-python"] == f">={promised[0]}"
    assert jobs["test"]["steps"][-1] == {"run": ".ci/run"}


def test_hooks_run_the_checks():
    hooks = [hook["entry"] for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    checks = re.findall(r"\$\(BIN\)/(.+)", re.search(r"\ncheck:.*\n((?:\t.*\n)+)", makefile)[1])
    assert {hook.split()[0] for hook in hooks} == {check.split()[0] for check in checks}


def test_scripts_import_names_that_exist():
    """Benchmarks are not run by the tests: what they import may have moved."""
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "docs").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "hf_mlp_fusion":
                for alias in node.names:
                    assert pkgutil.resolve_name(f"{node.module}.{alias.name}") is not None, path


def test_the_version_is_the_same_in_the_citation():
    assert read("CITATION.cff")["version"] == hf_mlp_fusion.__version__
