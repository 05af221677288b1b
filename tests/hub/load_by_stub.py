"""Loads what was pushed by the stub alone, in a process that never imports the plugin itself.

Usage: python load_by_stub.py FOLDER. Saves outputs, errors and a model saved again there.
"""

import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import transformers

FOLDER = Path(sys.argv[1])
AUTO = {
    "roberta": transformers.AutoModelForMaskedLM,
    "gpt2": transformers.AutoModelForCausalLM,
    "switch_transformers": transformers.AutoModelForSeq2SeqLM,
}


class NotInstalled(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_mlp_fusion":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def error_of(**kwargs):
    try:
        transformers.AutoModel.from_pretrained("tester/roberta-folder", **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


missing = NotInstalled()
sys.meta_path.insert(0, missing)
errors = {"not installed": error_of(trust_remote_code=True), "not trusted": error_of(trust_remote_code=False)}
sys.meta_path.remove(missing)
assert "hf_mlp_fusion" not in sys.modules
(FOLDER / "errors.json").write_text(json.dumps(errors))

models = {}
for family, auto in AUTO.items():
    for way in ("model", "folder"):
        repository = f"tester/{family}-{way}"
        models[f"{family}-{way}"] = auto.from_pretrained(repository, trust_remote_code=True, disable_mmap=True)
        assert transformers.AutoTokenizer.from_pretrained(repository)("w1 w2")["input_ids"]
# Another head than the saved one, of which config.json's auto_map says nothing.
transformers.AutoModelForTokenClassification.from_pretrained("tester/roberta-folder", trust_remote_code=True)

models["roberta-folder"].save_pretrained(FOLDER / "saved-again")

from conftest import first_output  # noqa: E402 (it imports the plugin, as the stub has done)
from safetensors.torch import save_file  # noqa: E402

for name, model in models.items():
    sizes = {key: tensor for key, tensor in model.state_dict().items() if key.endswith("cluster_sizes")}
    save_file({"output": first_output(model), **sizes}, FOLDER / f"{name}.safetensors")
