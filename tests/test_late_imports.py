"""What is not imported: torch and transformers by light verbs, and anything at all before it is asked for."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_model

from hf_mlp_fusion import FusionConfig, fuse_model, recipe, tensors
from hf_mlp_fusion.comparison.results import add_row
from hf_mlp_fusion.comparison.row import Row

HEAVY = "torch transformers huggingface_hub.hf_api sklearn scipy peft datasets accelerate"
_REPORT = f"; heavy = {HEAVY.split()}; print('imported:', [name for name in heavy if name in sys.modules])"
_COMMAND = f"""
import atexit, sys
atexit.register(lambda: print("imported:", [name for name in {HEAVY.split()} if name in sys.modules]))
from hf_mlp_fusion.cli import main
main()
"""


def run(code, *arguments, folder=None):
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with a fused model and one with a comparison."""
    root = tmp_path_factory.mktemp("light")
    fuse_model(tiny_model("bert"), FusionConfig(width=16)).save_pretrained(root / "fused")
    about = {"model": "m", "class": "C", "fused": 1, "data": "d", "samples": 1, "device": "cpu", "threads": 1}
    about |= {"versions": {}, "recipe": FusionConfig().to_dict()}
    (root / "compared").mkdir()
    add_row(root / "compared", Row("key", "comparison", about, "fusion", refused="it was refused"))
    return root


@pytest.mark.parametrize(
    "command",
    ["--version", "--help", "fuse --help", "bench glue --help", "families", "inspect fused", "report compared"],
)
def test_light_verbs_import_nothing_heavy(folders, command):
    assert run(_COMMAND, *command.split(), folder=folders).splitlines()[-1] == "imported: []"


def test_a_report_that_has_nothing_to_draw_imports_nothing_that_draws(folders):
    command = _COMMAND.replace("['torch',", "['matplotlib', 'numpy', 'torch',")
    shutil.rmtree(folders / "compared" / "pictures", ignore_errors=True)
    assert "'matplotlib'" in run(command, "report", "compared", folder=folders)
    assert run(command, "report", "compared", folder=folders).splitlines()[-1] == "imported: []"


def test_a_card_that_is_refused_waits_for_nothing(folders):
    command = [sys.executable, "-c", _COMMAND, "card", "fused", "--license", "none-such"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folders)
    assert "knows no licence" in done.stderr
    assert "torch" not in done.stdout.splitlines()[-1]
    assert "transformers" not in done.stdout.splitlines()[-1]


def test_a_verb_that_loads_a_model_is_told_apart(folders):
    """The check above can fail."""
    printed = run(_COMMAND, "card", "fused", "--base-model", "a/b", "--license", "mit", folder=folders)
    assert "'torch', 'transformers'" in printed.splitlines()[-1]


def test_the_package_alone_imports_nothing_heavy():
    assert run("import sys, hf_mlp_fusion" + _REPORT) == "imported: []\n"


@pytest.mark.parametrize(
    "first",
    [
        "import hf_mlp_fusion; from transformers import AutoConfig",
        pytest.param("from transformers import AutoConfig; import hf_mlp_fusion", marks=pytest.mark.every),
        "import transformers, hf_mlp_fusion; from transformers import AutoModel, AutoConfig",
        *(
            pytest.param(f"{first}; from transformers import AutoConfig", marks=pytest.mark.every)
            for first in ("from hf_mlp_fusion import register_family", "import hf_mlp_fusion.modeling.building")
        ),
    ],
)
def test_the_auto_classes_know_fused_models_in_any_order(folders, first):
    code = "; from transformers.models.auto import configuration_auto as module; import inspect, importlib.util, sys"
    code += "; print(type(AutoConfig.from_pretrained('fused')).__name__, len(inspect.getsource(module)) > 999)"
    code += "; print(type(module.__spec__.loader) is type(module.__loader__) is type(inspect.__loader__), end=' ')"
    code += "; print(any('hf_mlp_fusion' in type(finder).__module__ for finder in sys.meta_path))"
    assert run(first + code, folder=folders).split() == ["FusedBertConfig", "True", "True", "False"]


def test_a_config_made_without_the_auto_classes_registers_its_models(folders):
    code = """
import hf_mlp_fusion.modeling
config = hf_mlp_fusion.modeling.FusedBertConfig.from_pretrained("fused")
from transformers import AutoModelForMaskedLM
print(type(AutoModelForMaskedLM.from_config(config)).__name__)
"""
    assert run(code, folder=folders) == "FusedBertForMaskedLM\n"


def test_what_follows_an_import_waits_for_one_that_succeeds(tmp_path):
    """And is called once; a module that fails to import is tried again as it would be."""
    Path(tmp_path, "sometimes.py").write_text("import os\nif not os.path.exists('ready'):\n    raise ImportError\n")
    code = """
import importlib, os, sys
from hf_mlp_fusion.late_imports import after_import
sys.path.insert(0, ".")
after_import("sometimes", lambda: print("now", "sometimes" in sys.modules))
try:
    import sometimes
except ImportError:
    print("failed")
open("ready", "w").close()
importlib.invalidate_caches()
import sometimes
import sometimes
importlib.reload(sometimes)
after_import("sometimes", lambda: print("at once"))
"""
    assert run(code, folder=tmp_path).split("\n") == ["failed", "now True", "at once", ""]


def test_clusterings_have_the_names_that_recipes_take():
    assert list(recipe.CLUSTERINGS) == list(tensors.CLUSTERINGS)
