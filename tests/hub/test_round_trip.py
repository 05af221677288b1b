"""What is fused travels through the Hub: pushed in every way, loaded in a fresh process, the same bits."""

import json
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
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


pytestmark = pytest.mark.every  # several models go up and come down


@pytest.fixture(scope="module")
def travelled(tmp_path_factory):
    """Pushes in one process and loads in another; gives the Hub, the files of both, and all that they printed."""
    root = tmp_path_factory.mktemp("hub")
    (root / "pushed").mkdir()
    (root / "stub").mkdir()
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
            hub.run(root / "colleague", "hub/load_by_stub.py", root / "stub"),
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


@pytest.mark.parametrize("way", ["model", "folder"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_bits_by_the_stub(travelled, family, way):
    expected = load_file(travelled.root / "pushed" / f"{family}.safetensors")
    found = load_file(travelled.root / "stub" / f"{family}-{way}.safetensors")
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


def test_the_stub_says_what_to_install(travelled):
    errors = json.loads((travelled.root / "stub" / "errors.json").read_text())
    assert "pip install hf_mlp_fusion" in errors["not installed"]
    assert "trust_remote_code=True" in errors["not trusted"]


def test_the_stub_stays_when_the_model_is_saved_again(travelled):
    again = travelled.root / "stub" / "saved-again"
    pushed = travelled.repos["tester/roberta-folder"].files()
    assert (again / "modeling_mlp_fusion.py").read_bytes() == pushed["modeling_mlp_fusion.py"]
    assert {path.name for path in again.glob("*.py")} == {"modeling_mlp_fusion.py"}
    config = json.loads((again / "config.json").read_text())
    assert config["auto_map"] == json.loads(pushed["config.json"])["auto_map"]
    assert config["auto_map"]["AutoConfig"] == "modeling_mlp_fusion.FusedRobertaConfig"
    assert config["auto_map"]["AutoModelForMaskedLM"] == "modeling_mlp_fusion.FusedRobertaForMaskedLM"


@pytest.mark.parametrize("repository", ["roberta-model", "roberta-folder", "roberta-saved", "trained"])
def test_what_a_repository_holds(travelled, repository):
    files = travelled.repos[f"tester/{repository}"].files()
    assert {"config.json", "fusion_report.json", "README.md", "modeling_mlp_fusion.py"} <= set(files)
    assert any(name.endswith(".safetensors") for name in files)
    if repository != "roberta-saved":  # a model has no tokenizer to save
        assert {"tokenizer.json", "tokenizer_config.json"} <= set(files)
    pickles = {name for name in files if name.endswith((".bin", ".pt", ".pkl", ".pth"))}
    assert pickles == ({"training_args.bin"} if repository == "trained" else set())  # that one is Trainer's own


def card(travelled, repository, revision="main"):
    return ModelCard(travelled.repos[f"tester/{repository}"].files(revision)["README.md"].decode())


@pytest.mark.parametrize(
    "repository", ["roberta-model", "roberta-folder", "roberta-saved", "trained", "trained-plainly"]
)
def test_each_has_a_card(travelled, repository):
    found = card(travelled, repository)
    assert found.text.count("## Fused FFNs") == 1
    assert "mlp-fusion" in found.data.tags
    assert found.data.library_name == "transformers"
    assert "More Information Needed" not in found.text
    assert ("hyperparameters were used" in found.text) == repository.startswith("trained")
    picture = travelled.repos[f"tester/{repository}"].files()["fusion_errors.png"]
    assert picture.startswith(b"\x89PNG")


def test_nothing_is_made_up(travelled):
    """The tiny models come from nowhere: only what the command line was told is known of them."""
    assert card(travelled, "roberta-folder").data.license == "mit"
    assert card(travelled, "roberta-folder").data.base_model == "owner/base"
    for repository in ("roberta-model", "trained"):
        assert card(travelled, repository).data.get("license") is None
        assert card(travelled, repository).data.get("base_model") is None


def test_a_card_under_the_plain_trainer(travelled):
    """It keeps the tags; the part on fusion is gone until the model is pushed by itself."""
    before = card(travelled, "trained-plainly", "before")
    assert set(before.data.tags) == {"mlp-fusion", "generated_from_trainer"}
    assert "## Fused FFNs" not in before.text
    after = card(travelled, "trained-plainly")
    assert before.text.strip() in after.text
    assert set(after.data.tags) == {"mlp-fusion", "generated_from_trainer"}


def test_one_commit_each(travelled):
    assert travelled.repos["tester/roberta-saved"].messages == ["Upload FusedRobertaForMaskedLM"]
    assert travelled.repos["tester/roberta-folder"].messages == ["Upload fused model"]
    assert travelled.repos["tester/branches"].messages[0] == "a branch"


def test_the_token_is_nowhere(travelled):
    assert len(travelled.printed) == 3
    for text in [*travelled.printed, *travelled.log]:
        assert TOKEN not in text
    for repository in travelled.repos.values():
        for commit in repository.commits.values():
            assert not [name for name, data in commit.files.items() if TOKEN.encode() in data]
    assert not [path for path in travelled.root.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
