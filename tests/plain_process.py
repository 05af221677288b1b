"""Loads model folders where `hf_mlp_fusion` cannot be imported, and saves what they compute.

Usage: python plain_process.py JOBS, JOBS a JSON list of {auto, folder, inputs, out}. torch and transformers suffice.
"""

# ruff: noqa: E402 (the block comes before the imports that it is for)

import json
import sys
from pathlib import Path

sys.modules["hf_mlp_fusion"] = None  # any import of it fails

import torch
import transformers
from safetensors.torch import load_file, save_file

for job in json.loads(Path(sys.argv[1]).read_text()):
    model = getattr(transformers, job["auto"]).from_pretrained(job["folder"])
    assert type(model).__module__.startswith("transformers.")
    with torch.no_grad():
        output = model.eval()(**load_file(job["inputs"]))[0]
    save_file({"output": output.contiguous()}, job["out"], {"class": type(model).__name__})
