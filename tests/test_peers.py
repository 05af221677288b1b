"""The script that runs the peers' own suites tells a difference from none. (It runs by `make peers`, not here.)"""

import importlib
import tomllib
from pathlib import Path

import pytest

PEERS = Path(__file__).parent / "peers"


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(PEERS)
    return importlib.import_module("run")


def outcomes(**tests):
    return {f"a.py::{name}": {"outcome": outcome, "why": "E   why", "models": 1} for name, outcome in tests.items()}


def test_differences(run):
    stock = outcomes(same="passed", worse="passed", left="passed", gone="passed", skips="skipped", broken="failed")
    fused = outcomes(same="passed", worse="failed", left="skipped", skips="failed", broken="passed")
    found = run.compare(stock, fused)
    assert [test.partition("::")[2] for test in found] == ["gone", "left", "skips", "worse"]
    assert found["a.py::worse"] == "passed, then failed: E   why"
    exceptions = [{"test": f"a.py::{name}", "reason": "-"} for name in ("gone", "left", "skips", "worse")]
    assert run.judge(stock, found, exceptions) == []
    assert run.judge(stock, found, exceptions[:3]) == ["a.py::worse: passed, then failed: E   why"]
    assert run.judge(stock, found, [*exceptions, {"test": "a.py::s*e"}]) == [
        "a.py::same is listed as an exception, and is none"
    ]
    assert run.judge(stock, found, [*exceptions, {"test": "a.py::broken"}]) == [
        "the exception a.py::broken says nothing: stock models fail it, or there is no such test"
    ]
    assert run.rows("peft", stock, fused, found)[-1] == ["peft all", "6", "5", "4", "2", "0", "4"]


def test_exceptions_have_reasons():
    listed = tomllib.loads((PEERS / "exceptions.toml").read_text(encoding="utf-8"))
    assert listed.keys() <= {"peft", "transformers"}
    for entries in listed.values():
        for entry in entries:
            assert entry.keys() == {"test", "reason"}
            assert entry["test"].partition("::")[0].endswith(".py")
