"""Opens hostile folders, one after another, with little memory, and notes what came of each.

Usage: python hostile_folders.py ROOT OUT. ROOT gets the folders; OUT, a JSON object, for each folder and each way to
open it: error type, message, seconds, and megabytes by which the peak of resident memory grew.
"""

import json
import os
import resource
import shutil
import sys
import time
import warnings
from pathlib import Path

import torch
import transformers
from conftest import tiny_model
from safetensors.torch import load_file, save_file

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.hub import write_card
from hf_mlp_fusion.hub.push import check_folder
from hf_mlp_fusion.hub.saved import read_saved
from hf_mlp_fusion.hub.side_files import carry_side_files
from hf_mlp_fusion.modeling.loading import load_stock_model

ROOM = 1024 * 2**20  # bytes of memory that opening a folder of 60 kB may take
P = "transformer.h.1.mlp.act.cluster_sizes"
EVIL_CODE = "import pathlib; pathlib.Path({marker!r}).write_text('executed')\n"


def config(**changes):
    """Changes fields of config.json; a dotted name reaches into objects."""

    def spoil(folder):
        path = folder / "config.json"
        values = json.loads(path.read_text())
        for name, value in changes.items():
            values[name] = value
        path.write_text(json.dumps(values))

    return spoil


def section(edit):
    def spoil(folder):
        path = folder / "config.json"
        values = json.loads(path.read_text())
        edit(values["mlp_fusion"])
        path.write_text(json.dumps(values))

    return spoil


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def weights(edit):
    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return spoil


def header(values, size=0):
    """Weights of one header and `size` bytes, which take no place on the disk."""

    def spoil(folder):
        content = values if isinstance(values, bytes) else json.dumps(values).encode()
        with (folder / "model.safetensors").open("wb") as file:
            file.write(len(content).to_bytes(8, "little") + content)
            file.truncate(8 + len(content) + size)

    return spoil


def index(weight_map):
    def spoil(folder):
        (folder / "model.safetensors").rename(folder / "weights.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return spoil


def wide(folder):
    """All of config.json agrees on FFNs of 2**24 units; only the weights are small."""
    config(n_inner=2**24)(folder)
    section(lambda s: [f.update(width=2**24, original_width=2**24) for f in s["ffns"].values()])(folder)


def wide_and_bare(folder):
    """The same, and no FFN weights at all, which would be made up."""
    wide(folder)
    weights(lambda w: [w.pop(name) for name in list(w) if ".mlp." in name])(folder)


def billion_p(folder):
    size = 10**9
    tensors = load_file(folder / "model.safetensors")
    values, offset = {}, 0
    for name, tensor in tensors.items():
        shape = [size] if name.endswith("cluster_sizes") else list(tensor.shape)
        length = 4 * (size if name.endswith("cluster_sizes") else tensor.numel())
        dtype = "I32" if name.endswith("cluster_sizes") else "F32"
        values[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + length]}
        offset += length
    header(values, offset)(folder)


def nested(depth):
    value = "x"
    for _ in range(depth):
        value = [value]
    return value


def pickles_only(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Bomb(folder)}, folder / "pytorch_model.bin")


class Bomb:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return exec, (EVIL_CODE.format(marker=str(self.folder / "executed")),)


def pickle_shard(folder):
    torch.save({"weights": Bomb(folder)}, folder / "evil.bin")
    index({P: "evil.bin"})(folder)


def remote_code(folder):
    (folder / "evil.py").write_text(EVIL_CODE.format(marker=str(folder / "executed")) + "class Evil: pass\n")
    config(auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})(folder)


def unknown_remote_code(folder):
    remote_code(folder)
    config(model_type="evil", mlp_fusion=None)(folder)


def fifo(name):
    def spoil(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return spoil


def link(name, target):
    def spoil(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return spoil


def large(name, size):
    def spoil(folder):
        with (folder / name).open("ab") as file:
            file.truncate(size)

    return spoil


YAML_BOMB = "---\na0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
FFN = {"width": 16, "original_width": 64}
CASES = {
    "width 2**24, weights small": wide,
    "width 2**24, no weights": wide_and_bare,
    "width 2**40": section(lambda s: s["ffns"]["h.1.mlp"].update(width=2**40, original_width=2**41)),
    "width of 5,000 digits": lambda f: (f / "config.json").write_text(
        (f / "config.json").read_text().replace('"width": 16', '"width": 1' + "0" * 5000)
    ),
    "original width 2**24": section(lambda s: s["ffns"]["h.1.mlp"].update(original_width=2**24)),
    "width NaN": section(lambda s: s["ffns"]["h.1.mlp"].update(width=float("nan"))),
    "scales 10**400": section(lambda s: s["ffns"]["h.1.mlp"].update(scales=[10**400, 1])),
    "name ../../etc/passwd": section(lambda s: s["ffns"].update({"../../etc/passwd": FFN})),
    "name /etc/passwd": section(lambda s: s["ffns"].update({"/etc/passwd": FFN})),
    "name of a private member": section(lambda s: s["ffns"].update({"__class__": FFN})),
    "name of a megabyte": section(lambda s: s["ffns"].update({"h." * 500_000: FFN})),
    "name of layer 10**4000": section(lambda s: s["ffns"].update({"h.1" + "0" * 4000 + ".mlp": FFN})),
    "200,000 FFNs": section(lambda s: s["ffns"].update({f"h.{n}.mlp": FFN for n in range(200_000)})),
    "source nested 400 deep": section(lambda s: s["source"].update(name_or_path=nested(400))),
    "config nested 100,000 deep": text("config.json", '{"mlp_fusion": ' + "[" * 100_000),
    "config no JSON": text("config.json", "\0\0"),
    "config of 200 MB": large("config.json", 200 * 2**20),
    "config is a FIFO": fifo("config.json"),
    "10**9 layers": config(n_layer=10**9),
    "hidden size 10**9": config(n_embd=10**9, n_head=1),
    "architectures no list": config(architectures=7),
    "P with 10**9 entries": billion_p,
    "P float": weights(lambda w: w.update({P: w[P].float()})),
    "P bool": weights(lambda w: w.update({P: w[P].bool()})),
    "P negative": weights(lambda w: w.update({P: -w[P]})),
    "P 2-D": weights(lambda w: w.update({P: w[P].view(4, 4)})),
    "P overflows its sum": weights(lambda w: w.update({P: torch.full((16,), 2**62)})),
    "header length 2**63": lambda f: (f / "model.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{}"),
    "header of 99 MB": header(b"{" + b" " * 99_000_000 + b"}"),
    "header nested 100,000 deep": header(b"[" * 100_000),
    "header points past the end": header({P: {"dtype": "I32", "shape": [16], "data_offsets": [0, 2**40]}}),
    "header of 50,000 tensors": header(
        {f"transformer.t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(50_000)}
    ),
    "weights empty": text("model.safetensors", ""),
    "weights of zeros, 4 GB": large("model.safetensors", 4 * 2**30),
    "weights link to /dev/zero": link("model.safetensors", "/dev/zero"),
    "weights are a FIFO": fifo("model.safetensors"),
    "index to ../x.safetensors": index({P: "../x.safetensors"}),
    "index to /etc/passwd": index({P: "/etc/passwd"}),
    "index to a pickle": pickle_shard,
    "index to no file": index({P: "none.safetensors"}),
    "index to itself": index({P: "model.safetensors.index.json"}),
    "index no object": index([P]),
    "index of 17 MB": index({f"{n:060}": "weights.safetensors" for n in range(200_000)}),
    "pickles only": pickles_only,
    "auto_map to evil.py": remote_code,
    "receipt nested 100,000 deep": text("fusion_report.json", "[" * 100_000),
    "receipt of 200 MB": large("fusion_report.json", 200 * 2**20),
    "receipt with 10**400 parameters": lambda f: (f / "fusion_report.json").write_text(
        json.dumps(json.loads((f / "fusion_report.json").read_text()) | {"bytes_before": 10**400})
    ),
    "receipt links to /dev/zero": link("fusion_report.json", "/dev/zero"),
    "receipt is a FIFO": fifo("fusion_report.json"),
    "README with a YAML bomb": text("README.md", YAML_BOMB + "---\n"),
    "README with a Python object": text("README.md", "---\nlicense: !!python/object/apply:os.system ['x']\n---\n"),
    "README of 200 MB": large("README.md", 200 * 2**20),
    "README links to /etc/passwd": link("README.md", "/etc/passwd"),
}
STOCK_CASES = {
    "unknown type with auto_map": unknown_remote_code,
    "pickles only": pickles_only,
    "tokenizer links to /etc/passwd": link("tokenizer.json", "/etc/passwd"),
}

ACTIONS = {
    "load": lambda folder: transformers.AutoModelForCausalLM.from_pretrained(folder),
    "load trusting": lambda folder: transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True),
    "inspect": lambda folder: read_saved(str(folder)),
    "push": check_folder,
    "card": lambda folder: write_card(folder, license="mit", base_model="owner/base"),
}


def open_stock(folder):
    carry_side_files(str(folder), folder.parent)
    load_stock_model(str(folder))


def open_it(action, folder):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    error = message = None
    try:
        action(folder)
    except BaseException as raised:
        error, message = type(raised).__name__, str(raised)
    return {
        "error": error,
        "message": (message or "")[:400],
        "seconds": round(time.perf_counter() - started, 2),
        "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024,
        "executed": (folder / "executed").exists(),
    }


def main():
    root, out = map(Path, sys.argv[1:])
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    good = root / "good"
    fuse_model(tiny_model("gpt2"), FusionConfig(width=16)).save_pretrained(good)
    stock = root / "stock"
    tiny_model("gpt2").save_pretrained(stock)
    results = {}
    for action in ACTIONS.values():  # imports what they import, before memory is counted
        action(good)
    (good / "README.md").unlink()
    # Of data alone: files that are only mapped take no memory.
    size = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (size + ROOM, size + ROOM))
    for name, spoil in CASES.items():
        folder = root / "folder"
        shutil.copytree(good, folder)
        spoil(folder)
        results[name] = {way: open_it(action, folder) for way, action in ACTIONS.items()}
        shutil.rmtree(folder)
    for name, spoil in STOCK_CASES.items():
        folder = root / "folder"
        shutil.copytree(stock, folder)
        spoil(folder)
        results[f"stock: {name}"] = {"fuse": open_it(open_stock, folder)}
        shutil.rmtree(folder)
    out.write_text(json.dumps(results, indent=1))


main()
