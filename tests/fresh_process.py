"""Loads fused folders in a process that has only imported the plugin, and saves what they compute.

Usage: python fresh_process.py JOBS, JOBS a JSON list of {auto, folder, out, kwargs}, some with an adapter (its folder)
besides. The Auto class is one of transformers or, with "module", of another package. An `AutoPeftModel*` takes the
adapter as `folder`, and finds the model itself.
"""

import importlib
import json
import sys
from pathlib import Path

import torch
from conftest import first_output
from safetensors.torch import save_file

import hf_mlp_fusion  # noqa: F401  (registers the fused classes)

for job in json.loads(Path(sys.argv[1]).read_text()):
    kwargs = dict(job["kwargs"])
    if "dtype" in kwargs:
        kwargs["dtype"] = getattr(torch, kwargs["dtype"])
    auto = getattr(importlib.import_module(job.get("module", "transformers")), job["auto"])
    if not job["auto"].startswith("AutoPeft"):
        # Memory-mapped weights may be unaligned, which changes the last bit of some matrix products.
        kwargs["disable_mmap"] = True
    model = auto.from_pretrained(job["folder"], **kwargs)
    if "adapter" in job:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, job["adapter"])
    sizes = {name: tensor for name, tensor in model.state_dict().items() if name.endswith("cluster_sizes")}
    metadata = {
        "class": type(model).__name__,
        "dtype": str(model.dtype),
        "report": "" if model.fusion_report is None else model.fusion_report.to_json(),
    }
    save_file({"output": first_output(model), **sizes}, job["out"], metadata)
