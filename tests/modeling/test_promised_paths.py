"""The module paths that end up in users' files are those that docs/design.md promises, and still lead somewhere."""

import ast
import copy
import importlib
import io
import json
import pickle
import pickletools
import re
from pathlib import Path

import pytest
import torch
from any_family import output_of_any, tiny_family_model
from peft import LoraConfig, get_peft_model
from transformers import BertForMaskedLM

import hf_mlp_fusion
from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.families import FAMILIES
from hf_mlp_fusion.hub.stub import stub_text

DESIGN = Path(__file__).parents[2] / "docs" / "design.md"
OLD_STUB = "from hf_mlp_fusion import modeling, registration\n"  # of the first version


def promised():
    section = DESIGN.read_text(encoding="utf-8").split("## Promised paths")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(hf_mlp_fusion[\w.]*)` \|", section, flags=re.MULTILINE))


def modules_in_pickle(data):
    """The modules that a pickle imports from."""
    found, strings = set(), []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            found.add(argument.split(" ")[0])
        elif opcode.name == "STACK_GLOBAL":
            found.add(strings[-2])
        elif isinstance(argument, str):
            strings.append(argument)
    return found


class Own(BertForMaskedLM):
    """A user's own."""


def _fused(kind):
    family = FAMILIES["bert" if kind == "own" else kind]
    model = tiny_family_model(family, Own if kind == "own" else None)
    return fuse_model(model, FusionConfig(width=32, targets="all"))


KINDS = ["bert", "esm", "own", "mixtral"]


@pytest.fixture(scope="module", params=KINDS)
def fused(request):
    return _fused(request.param)


def test_paths_in_files_are_promised(tmp_path):
    found = set()
    for model in map(_fused, KINDS):
        found |= modules_in_pickle(pickle.dumps(model)) | modules_in_pickle(pickle.dumps(model.config))
    get_peft_model(_fused("bert"), LoraConfig(r=2)).save_pretrained(tmp_path)
    found.add(json.loads((tmp_path / "adapter_config.json").read_text())["auto_mapping"]["parent_library"])
    for node in ast.walk(ast.parse(stub_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{item.name}" for item in node.names}
    assert {name for name in found if name.startswith("hf_mlp_fusion")} == promised()


def test_promised_paths_lead_somewhere():
    for name in promised():
        importlib.import_module(name)


def test_pickles_come_back(fused):
    again = pickle.loads(pickle.dumps(fused))
    assert type(again) is type(fused)
    assert type(again.config) is type(fused.config)
    assert output_of_any(again).equal(output_of_any(fused))
    twin = copy.deepcopy(fused)
    assert type(twin) is type(fused)
    assert output_of_any(twin).equal(output_of_any(fused))
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    assert output_of_any(torch.load(file, weights_only=False)).equal(output_of_any(fused))


def test_the_stub_of_the_first_version_still_works():
    names = {}
    exec(OLD_STUB, names)
    for name in ("FusedBertForMaskedLM", "FusedBertConfig"):
        assert any(hasattr(names[module], name) for module in ("registration", "modeling"))
    assert hf_mlp_fusion.modeling.FusedBertConfig.model_type == "fused_bert"
    with pytest.raises(AttributeError, match="no attribute 'FusedNothing'"):
        hf_mlp_fusion.modeling.FusedNothing  # noqa: B018
