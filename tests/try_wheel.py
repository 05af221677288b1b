"""Tries what `python -m build` made: what the wheel and the source distribution hold, and the installed wheel.

Usage: python try_wheel.py DIST. The wheel is installed without its dependencies, which are those of this Python.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
SMOKE = """
import pathlib, sys
import hf_mlp_fusion
assert pathlib.Path(hf_mlp_fusion.__file__).is_relative_to(sys.prefix), hf_mlp_fusion.__file__
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM
sizes = {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
model = BertForMaskedLM(BertConfig(**sizes, intermediate_size=64))
hf_mlp_fusion.fuse_model(model, hf_mlp_fusion.FusionConfig(width=32)).save_pretrained("fused")
assert AutoModelForMaskedLM.from_pretrained("fused").fusion_report.ffns[0].width == 32
"""


def check_contents(wheel: Path, sdist: Path) -> None:
    """The wheel has every file of the package; the source distribution every file of the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    tracked = set(listed.stdout.splitlines())
    package = {name for name in tracked if name.startswith("hf_mlp_fusion/")}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert held == package, held ^ package
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert held == tracked | {"PKG-INFO"}, held ^ tracked


def try_wheel(wheel: Path, folder: Path) -> None:
    """Installs the wheel into an environment of its own, and fuses."""
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--quiet", "install"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(
        sysconfig.get_path("purelib") + "\n"
    )  # comes after, and reads no .pth there
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = folder / "venv" / "bin" / "hf-mlp-fusion"
    for words in (
        [python, "-c", SMOKE],
        [command, "--help"],
        [command, "inspect", "fused"],
        [command, "card", "fused", "--base-model", "owner/name", "--license", "mit"],
    ):
        subprocess.run(words, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    dist = Path(sys.argv[1])
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    check_contents(wheel, sdist)
    with tempfile.TemporaryDirectory() as temporary:
        try_wheel(wheel.resolve(), Path(temporary))
