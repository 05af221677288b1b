"""What pytest gets told when it runs a peer's suite: the pieces that the source distributions lack, and the Hub.

Loaded by `-p plugin`. Suites of stock and fused models get the same.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import types
from pathlib import Path

import pytest

if os.environ["PEERS_MODELS"] == "fused":
    import hf_mlp_fusion  # noqa: F401  as its users do

# Of the models that each adapter is tried on, those whose FFNs are of a kind that OPT, GPT-2, Llama or BERT have.
REPEATS = (
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM",
    "peft-internal-testing/tiny-dummy-qwen2",
    "peft-internal-testing/tiny-random-DebertaV2Model",
    "peft-internal-testing/tiny-random-GPTJForCausalLM",
    "peft-internal-testing/tiny-random-RobertaModel",
)

_opened: set[str] = set()
_here = str(Path.cwd())


def _note_models(event: str, arguments: tuple) -> None:
    if event == "open" and str(arguments[0]).endswith("config.json"):
        path = Path(str(arguments[0])).absolute()
        if path.is_relative_to(_here):
            _opened.add(str(path.parent.relative_to(_here)))


sys.addaudithook(_note_models)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Writes down whether a test has loaded one of the tiny models."""
    report = yield
    if report.when == "call":
        report.user_properties.append(("models", len(_opened)))
        _opened.clear()
    return report


def _is_left_out(item) -> bool:
    """Whether a test is on no model, on one that is not here, or on one that repeats a kind, a thousand times."""
    if not hasattr(item, "callspec") or "model_id" not in item.callspec.params:
        return item.path.name == "test_custom_models.py"  # modules, not models
    model_id = item.callspec.params["model_id"]
    return not Path(model_id).is_dir() or model_id in REPEATS


def pytest_collection_modifyitems(config, items):
    """Leaves tests out."""
    if os.environ["PEERS_SUITE"] == "peft":
        config.hook.pytest_deselected(items=[item for item in items if _is_left_out(item)])
        items[:] = [item for item in items if not _is_left_out(item)]


_outcomes: dict[str, dict] = {}


def pytest_runtest_logreport(report):
    """Keeps the worst of a test's parts: set-up, call, subtests, clean-up."""
    path, _, name = report.nodeid.partition("::")
    entry = _outcomes.setdefault(f"{Path(path).name}::{name}", {"outcome": "passed", "why": "", "models": 0})
    entry["models"] += dict(report.user_properties).get("models", 0) if report.when == "call" else 0
    order = ("passed", "skipped", "failed")
    if order.index(report.outcome) > order.index(entry["outcome"]):
        entry["outcome"] = report.outcome
        entry["why"] = (report.longreprtext or str(report.longrepr)).strip().splitlines()[-1][:300]


def pytest_sessionfinish(session):
    """Hands the outcomes over."""
    if not hasattr(session.config, "workerinput"):  # the workers' reports come together in the first process
        Path(os.environ["PEERS_OUTCOMES"]).write_text(json.dumps(_outcomes), encoding="utf-8")


def _stand_in(name: str, **members) -> None:
    """A module of a suite that its source distribution leaves out."""
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


def pytest_configure():
    """Before any module of the suite is imported."""
    if os.environ["PEERS_SUITE"] == "peft":
        # Ids that are not local are sought offline: no waiting for a Hub that is not asked.
        importlib.import_module("tests.testing_utils").hub_online_once = lambda model_id: contextlib.nullcontext()
    else:
        for name in ("exporters", "generation"):
            _stand_in(f"tests.{name}")
        _stand_in("tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
        _stand_in("tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
        common = importlib.import_module("tests.test_modeling_common")
        names = common.get_values
        # Labels are made by the names of heads: those of fused heads are of the same kind.
        common.get_values = lambda mapping: [name for head in names(mapping) for name in (head, f"Fused{head}")]
