"""Hostile folders end in a clear error, soon and with little memory, and nothing of theirs is executed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# What each way to open a folder must come to. "OK": it opens, for what is spoiled is not looked at or does no harm.
# Errors of transformers' own config reader, which comes first, are marked with a star.
OPEN, OURS = "OK", "BrokenCheckpointError"
ALL_REFUSE = {"load": OURS, "inspect": OURS, "push": OURS, "card": OURS}
STOCK_READER = ALL_REFUSE | {"load": "*"}
WEIGHTS = {"load": OURS, "inspect": OPEN, "push": OURS, "card": OPEN}
RECEIPT = {"load": OPEN, "inspect": OURS, "push": OURS, "card": OURS}
HARMLESS = {"load": OPEN, "inspect": OPEN, "push": OPEN, "card": OPEN}
EXPECTED = {
    "width 2**24, weights small": (ALL_REFUSE, "another shape.* says 16777216 units"),
    "width 2**24, no weights": (ALL_REFUSE, "the checkpoint lacks"),
    "width 2**40": (ALL_REFUSE, "is no number of hidden units"),
    "width of 5,000 digits": (STOCK_READER, "4300 digits"),
    "original width 2**24": (WEIGHTS, "contradicts itself"),
    "width NaN": (ALL_REFUSE, "nan is no number of hidden units"),
    "scales 10**400": (ALL_REFUSE, "scales must be two positive numbers"),
    "name ../../etc/passwd": (ALL_REFUSE, "which is no FFN of such a model"),
    "name /etc/passwd": (ALL_REFUSE, "which is no FFN of such a model"),
    "name of a private member": (ALL_REFUSE, "which is no FFN of such a model"),
    "name of a megabyte": (ALL_REFUSE, "which is no FFN of such a model"),
    "name of layer 10**4000": (ALL_REFUSE, "the checkpoint lacks"),
    "200,000 FFNs": (ALL_REFUSE, "names 200,000 FFNs, more than any model has"),
    "source nested 400 deep": (ALL_REFUSE, "source must hold names only"),
    "config nested 100,000 deep": (STOCK_READER, "recursion"),
    "config no JSON": (STOCK_READER, "not a valid JSON file"),
    "config of 200 MB": (STOCK_READER, "not a valid JSON file"),
    "config is a FIFO": (STOCK_READER, "Unrecognized model"),
    "10**9 layers": (HARMLESS | {"load": OURS}, "num_hidden_layers=1000000000, but the checkpoint has 43 tensors"),
    "hidden size 10**9": (HARMLESS | {"load": "*"}, "overflowed"),
    "architectures no list": (HARMLESS, ""),
    "P with 10**9 entries": (WEIGHTS, r"another shape.*\[1000000000\], where config.json says 16 units"),
    "P float": (WEIGHTS, "stored as F32, cluster sizes are integers"),
    "P bool": (WEIGHTS, "stored as BOOL, cluster sizes are integers"),
    "P negative": (WEIGHTS, "cluster sizes are positive"),
    "P 2-D": (WEIGHTS, "another shape"),
    "P overflows its sum": (WEIGHTS, "is broken: it holds"),
    "header length 2**63": (WEIGHTS, "header too large"),
    "header of 99 MB": (WEIGHTS, "the checkpoint lacks"),
    "header nested 100,000 deep": (WEIGHTS, "invalid JSON in header"),
    "header points past the end": (WEIGHTS, "is broken"),
    "header of 50,000 tensors": (WEIGHTS, "the checkpoint lacks"),
    "weights empty": (WEIGHTS, "header too small"),
    "weights of zeros, 4 GB": (WEIGHTS, "is broken"),
    "weights link to /dev/zero": (WEIGHTS, "has no model.safetensors"),
    "weights are a FIFO": (WEIGHTS, "has no model.safetensors"),
    "index to ../x.safetensors": (WEIGHTS, "is no safetensors file beside it"),
    "index to /etc/passwd": (WEIGHTS, "is no safetensors file beside it"),
    "index to a pickle": (WEIGHTS, "is no safetensors file beside it"),
    "index to no file": (
        WEIGHTS | {"load": "*", "push": "*"},
        "does not appear to have a file named none.safetensors",
    ),
    "index to itself": (WEIGHTS, "is no safetensors file beside it"),
    "index no object": (WEIGHTS, "weight_map must be an object"),
    "index of 17 MB": (WEIGHTS, "is too large"),
    "pickles only": (WEIGHTS, "weights in pickles are not read: they can run code"),
    "auto_map to evil.py": (HARMLESS, ""),
    "receipt nested 100,000 deep": (RECEIPT, "is not JSON"),
    "receipt of 200 MB": (RECEIPT, "is too large"),
    "receipt with 10**400 parameters": (RECEIPT, "bytes_before must be int"),
    "receipt links to /dev/zero": (RECEIPT, "receipt fusion_report.json is missing"),
    "receipt is a FIFO": (RECEIPT, "receipt fusion_report.json is missing"),
    "README with a YAML bomb": (HARMLESS, ""),
    "README with a Python object": (HARMLESS | {"card": "FusionConfigError"}, "are not legible"),
    "README of 200 MB": (HARMLESS | {"card": OURS}, "is too large"),
    "README links to /etc/passwd": (HARMLESS | {"card": OURS}, "is a link that leads out of the folder"),
    "stock: unknown type with auto_map": ({"fuse": "FusionConfigError"}, "custom code"),
    "stock: pickles only": ({"fuse": "UnsupportedModelError"}, "pickles are not read"),
    "stock: tokenizer links to /etc/passwd": ({"fuse": OURS}, "is a link that leads out of the folder"),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    subprocess.run(
        [sys.executable, Path(__file__).parents[1] / "hostile_folders.py", root, root / "results.json"],
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    return json.loads((root / "results.json").read_text())


def test_all_are_expected(opened):
    assert opened.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_hostile(opened, name):
    ways, message = EXPECTED[name]
    results = opened[name]
    if "load" in results:
        trusting = results.pop("load trusting")
        assert (trusting["error"], trusting["executed"]) == (results["load"]["error"], False)
    for way, result in results.items():
        expected = ways[way]
        assert (result["error"] or OPEN) == expected or (expected == "*" and result["error"]), (way, result)
        assert not result["executed"]
        assert result["seconds"] < 20, way  # one or two, but on a busy machine
        assert result["megabytes"] < 512, way
    messages = [result["message"] for result in results.values()]
    assert any(re.search(message, text) for text in messages), messages
