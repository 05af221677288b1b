"""What is fused travels through the Hub: pushed in every way, loaded in a fresh process, the same bits."""

import json
from types import SimpleNamespace

import pytest
import torch
from loopback import TOKEN, loopback_hub
from safetensors.torch import load_file, safe_open

FAMILIES = ("roberta", "gpt2", "switch_transformers")
AUTO = {
    "roberta": "AutoModelForMaskedLM",
    "gpt2": "AutoModelForCausalLM",
    "switch_transformers": "AutoModelForSeq2SeqLM",
}
# Test: what was pushed, Auto class, repository, arguments of from_pretrained.
LOADS = {
    **{
        f"{family}-{way}": (family, AUTO[family], f"{family}-{way}", {})
        for family in FAMILIES
        for way in ("model", "folder")
    },
    "saved": ("roberta", AUTO["roberta"], "roberta-saved", {}),
    "revision": ("roberta", AUTO["roberta"], "branches", {"revision": "dev"}),
    "subfolder": ("roberta", AUTO["roberta"], "branches", {"subfolder": "below/it"}),
    "trained": ("trained", "AutoModelForSequenceClassification", "trained", {}),
    "adapter": ("adapter", "AutoPeftModelForCausalLM", "adapter", {}),
}


@pytest.fixture(scope="module")
def travelled(tmp_path_factory):
    """Pushes in one process and loads in another; gives the Hub, the files of both, and all that they printed."""
    root = tmp_path_factory.mktemp("hub")
    (root / "pushed").mkdir()
    jobs = [
        {
            "module": "peft" if "Peft" in auto else "transformers",
            "auto": auto,
            "folder": f"tester/{repository}",
            "out": str(root / f"{name}.safetensors"),
            "kwargs": kwargs,
        }
        for name, (_, auto, repository, kwargs) in LOADS.items()
    ]
    (root / "jobs.json").write_text(json.dumps(jobs))
    with loopback_hub() as hub:
        printed = [
            hub.run(root / "pusher", "hub/push_everything.py", root / "pushed"),
            hub.run(root / "loader", "fresh_process.py", root / "jobs.json"),
        ]
    return SimpleNamespace(root=root, repos=hub.repos, printed=printed, log=hub.log)


@pytest.mark.parametrize("name", LOADS)
def test_the_same_bits(travelled, name):
    expected = load_file(travelled.root / "pushed" / f"{LOADS[name][0]}.safetensors")
    found = load_file(travelled.root / f"{name}.safetensors")
    assert any(key.endswith("cluster_sizes") for key in expected)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
    with safe_open(travelled.root / f"{name}.safetensors", "pt") as file:
        assert json.loads(file.metadata()["report"])["ffns"], "the receipt came along"


@pytest.mark.parametrize("repository", ["roberta-model", "roberta-folder", "roberta-saved", "trained"])
def test_what_a_repository_holds(travelled, repository):
    files = travelled.repos[f"tester/{repository}"].files()
    assert {"config.json", "fusion_report.json", "README.md"} <= set(files) or repository == "roberta-folder"
    assert any(name.endswith(".safetensors") for name in files)
    if repository != "roberta-saved":  # a model has no tokenizer to save
        assert {"tokenizer.json", "tokenizer_config.json"} <= set(files)
    pickles = {name for name in files if name.endswith((".bin", ".pt", ".pkl", ".pth"))}
    assert pickles == ({"training_args.bin"} if repository == "trained" else set())  # that one is Trainer's own


def test_one_commit_each(travelled):
    assert travelled.repos["tester/roberta-saved"].messages == ["Upload FusedRobertaForMaskedLM"]
    assert travelled.repos["tester/roberta-folder"].messages == ["Upload fused model"]
    assert travelled.repos["tester/branches"].messages[0] == "a branch"


def test_the_token_is_nowhere(travelled):
    assert len(travelled.printed) == 2
    for text in [*travelled.printed, *travelled.log]:
        assert TOKEN not in text
    for repository in travelled.repos.values():
        for commit in repository.commits.values():
            assert not [name for name, data in commit.files.items() if TOKEN.encode() in data]
    assert not [path for path in travelled.root.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
