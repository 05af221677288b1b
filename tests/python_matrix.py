"""The quick tests on the other Pythons that are here: the newest one with the newest of all libraries but torch.

Usage: python tests/python_matrix.py [VERSION ...], if none is given those that are promised but the one that runs it.

Each gets an environment of its own, `.venv-VERSION`, by `make test`. A Python that is not here is named, and is no
failure; it is looked for on PATH and among pyenv's.
"""

import shutil
import subprocess
import sys
from pathlib import Path

PROMISED = ("3.11", "3.12", "3.13")


def interpreter(version: str) -> str | None:
    """The path of a Python that starts: pyenv's shims are there for versions that are not."""
    found = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    for path in filter(None, found):
        if subprocess.run([path, "-c", "import ensurepip, venv"], capture_output=True).returncode == 0:
            return str(path)
    return None


def main(versions: list[str]) -> int:
    """Runs the tests on each, and returns 1 if any failed."""
    failed = []
    for version in versions:
        python = interpreter(version)
        if python is None:
            print(f"skipped: Python {version}, which is not here", flush=True)
            continue
        print(f"Python {version}", flush=True)
        newest = ["CONSTRAINTS="] if version == PROMISED[-1] else []
        command = ["make", "test", f"PYTHON={python}", f"VENV=.venv-{version}", *newest]
        if subprocess.run(command).returncode:
            failed.append(version)
    print(f"failed: {', '.join(failed)}" if failed else "passed")
    return bool(failed)


if __name__ == "__main__":
    own = "{}.{}".format(*sys.version_info)
    sys.exit(main(sys.argv[1:] or [version for version in PROMISED if version != own]))
