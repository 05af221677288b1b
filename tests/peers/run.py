"""Runs the peers' own tests, PEFT's and transformers', on tiny models: once stock and once fused, and compares.

    python tests/peers/run.py [peft|transformers] [--only FILES] [--work FOLDER] [--out FILE]

What passes on stock models must pass on fused ones. `exceptions.toml` lists what does not, and why. The exit status
is 1 where anything else differs, and where an exception is listed that is none any more. PyPI is needed, the Hub is
not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections import Counter
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tiny_hub import IDS

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
HELPERS = ("diffusers==0.42.1", "parameterized==0.9.0")  # what the suites import and the project does not
PASSED, SKIPPED, FAILED, MISSING = "passed", "skipped", "failed", "missing"


def fetch(suite: str, work: Path) -> Path:
    """The source distribution of an installed package, unpacked, with a package `tests` in it.

    Args:
        suite: The package.
        work: The folder to unpack into.
    """
    name = f"{suite}-{version(suite)}"
    if not (work / name).is_dir():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        download = [*pip, "download", "--no-deps", "--no-binary", ":all:", "--dest", work]
        subprocess.run([*download, f"{suite}=={version(suite)}"], check=True)
        subprocess.run([*pip, "install", "--no-deps", "--upgrade", "--target", work / "helpers", *HELPERS], check=True)
        with tarfile.open(work / f"{name}.tar.gz") as archive:
            archive.extractall(work, filter="data")
    (work / name / "tests" / "__init__.py").touch()  # left out of the distribution, as all that is not called test*
    if suite == "transformers":
        shutil.copy(HERE / "heads.py", work / name / "tests")
    return work / name


def test_files(suite: str, source: Path) -> list[Path]:
    """The files of a suite whose tests are on models that there are fused twins of.

    Args:
        suite: The package.
        source: Its unpacked source distribution.
    """
    if suite == "transformers":
        return [source / "tests" / "heads.py"]
    quoted = [f'"{model_id}"' for model_id in IDS]
    return [
        path
        for path in sorted((source / "tests").glob("test_*.py"))
        if "gpu" not in path.name and any(name in path.read_text(encoding="utf-8") for name in quoted)
    ]


def outcomes(suite: str, files: list[Path], source: Path, models: str, work: Path) -> dict[str, dict]:
    """Runs a suite, and returns what became of each test.

    Args:
        suite: The package.
        files: The files of its suite to run.
        source: Its unpacked source distribution.
        models: `"stock"` or `"fused"`.
        work: The folder to work in.
    """
    folder, result = work / f"{suite}-{models}", work / f"{suite}-{models}.json"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    result.unlink(missing_ok=True)
    path = [source, work / "helpers", REPOSITORY, HERE.parent, HERE]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    environment |= {"PEERS_SUITE": suite, "PEERS_MODELS": models, "PEERS_OUTCOMES": str(result)}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
    if suite == "peft":
        subprocess.run([sys.executable, HERE / "tiny_hub.py", models], cwd=folder, env=environment, check=True)
    pytest = [sys.executable, "-m", "pytest", "-p", "plugin", "-p", "no:cacheprovider", "-n", "2", "--timeout", "1800"]
    pytest += [
        "-c",
        source / "pyproject.toml",
        "-o",
        "addopts=",
        "-o",
        "log_cli=false",
        "--quiet",
        "--tb=no",
        "--show-capture=no",
        "-rN",
    ]
    # peft 0.21 asks transformers 5.24 for names that it has deprecated, and makes errors of such warnings.
    pytest += ["-W", "ignore::FutureWarning"]
    with (work / f"{suite}-{models}.log").open("w", encoding="utf-8") as log:
        subprocess.run([*pytest, *files], cwd=folder, env=environment, stdout=log, stderr=log, check=False)
    if not result.is_file():
        raise SystemExit(f"the suite did not run to its end: see {log.name}")
    return json.loads(result.read_text(encoding="utf-8"))


def compare(stock: dict[str, dict], fused: dict[str, dict]) -> dict[str, str]:
    """The tests that a fused model changes, with what happens. What fails on stock models says nothing.

    Args:
        stock: What became of each test on stock models.
        fused: The same on fused ones.
    """
    none = {"outcome": MISSING, "why": ""}
    differences = {}
    for test in sorted({*stock, *fused}):
        before, after = stock.get(test, none), fused.get(test, none)
        if before["outcome"] not in (FAILED, after["outcome"]):
            differences[test] = f"{before['outcome']}, then {after['outcome']}: {after['why'] or before['why']}"
    return differences


def judge(stock: dict[str, dict], differences: dict[str, str], exceptions: list[dict]) -> list[str]:
    """What is wrong: differences that no exception covers, and exceptions that are none.

    Args:
        stock: What became of each test on stock models.
        differences: What `compare` found.
        exceptions: The entries of `exceptions.toml`.
    """
    listed = {test: [entry for entry in exceptions if fnmatchcase(test, entry["test"])] for test in stock}
    wrong = [f"{test}: {what}" for test, what in differences.items() if not listed.get(test)]
    for entry in exceptions:
        covered = [test for test, entries in listed.items() if entry in entries and stock[test]["outcome"] != FAILED]
        wrong += [f"{test} is listed as an exception, and is none" for test in covered if test not in differences]
        if not covered:
            wrong.append(f"the exception {entry['test']} says nothing: stock models fail it, or there is no such test")
    return wrong


def rows(suite: str, stock: dict[str, dict], fused: dict[str, dict], differences: dict[str, str]) -> list[list[str]]:
    """Lines of the table: one for each file of a suite, and their sum.

    Args:
        suite: The package.
        stock: What became of each test on stock models.
        fused: The same on fused ones.
        differences: What `compare` found.
    """
    counts: dict[str, Counter] = {}
    for test in sorted({*stock, *fused}):
        count = counts.setdefault(test.partition("::")[0], Counter())
        before, after = (run[test]["outcome"] if test in run else MISSING for run in (stock, fused))
        loaded = suite == "transformers" or (test in fused and fused[test]["models"] > 0)
        count.update(tests=1, loaded=int(loaded), stock=int(before == PASSED), fused=int(after == PASSED))
        count.update(both=int(before == after == FAILED), differences=int(test in differences))
    counts["all"] = sum(counts.values(), Counter())
    names = ("tests", "loaded", "stock", "fused", "both", "differences")
    return [[f"{suite} {file}", *(str(count[name]) for name in names)] for file, count in counts.items()]


def main() -> int:
    """Runs, prints a table, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", nargs="?", choices=("peft", "transformers"), help="one of them alone")
    parser.add_argument("--only", nargs="+", metavar="FILE", help="some files of the suite, such as test_auto.py")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build" / "peers", help="where to download and run")
    parser.add_argument("--out", type=Path, help="a JSON file for what became of each test")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    exceptions = tomllib.loads((HERE / "exceptions.toml").read_text(encoding="utf-8"))
    console, wrong, kept = Console(width=119, highlight=False), [], {}
    table = Table("suite", "tests", "on a tiny model", "pass stock", "pass fused", "fail on both", "differ")
    for suite in [arguments.suite] if arguments.suite else ["peft", "transformers"]:
        source = fetch(suite, work)
        files = [file for file in test_files(suite, source) if not arguments.only or file.name in arguments.only]
        names = {file.name for file in files}
        entries = [entry for entry in exceptions.get(suite, []) if entry["test"].partition("::")[0] in names]
        stock, fused = (outcomes(suite, files, source, models, work) for models in ("stock", "fused"))
        differences = compare(stock, fused)
        wrong += judge(stock, differences, entries)
        kept[suite] = {"stock": stock, "fused": fused, "differences": differences}
        for row in rows(suite, stock, fused, differences):
            table.add_row(*row)
        for entry in entries:
            covered = sum(fnmatchcase(test, entry["test"]) for test in differences)
            console.print(f"{covered} of {suite}, {entry['test']}: {entry['reason']}", markup=False)
    console.print(table)
    for line in wrong:
        console.print(line, markup=False, soft_wrap=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
