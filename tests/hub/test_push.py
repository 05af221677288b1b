"""`hf-mlp-fusion push`: what goes up, what is refused, and that a failed push changes nothing."""

import json
import shutil
from types import SimpleNamespace

import pytest
from conftest import tiny_model
from loopback import TOKEN, loopback_hub
from safetensors.torch import load_file, save_file
from tiny_text import tiny_tokenizer

from hf_mlp_fusion import FusionConfig, fuse_model
from hf_mlp_fusion.hub.stub import add_stub

P = "transformer.h.1.mlp.act.cluster_sizes"


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def folders(root):
    """Folders to push: good ones, and one for each reason to refuse."""
    fused = fuse_model(tiny_model("gpt2"), FusionConfig(width=16))
    good = root / "good"
    fused.save_pretrained(good)
    tiny_tokenizer("gpt2").save_pretrained(good)
    fused.save_pretrained(root / "sharded", max_shard_size="8KB")
    tiny_model("gpt2").save_pretrained(root / "stock")
    for name in ("trained", "pickle", "float", "sum", "receipt", "bare", "linked", "stubbed", "readme"):
        shutil.copytree(good, root / name)
    add_stub(root / "stubbed")
    (root / "readme" / "README.md").write_text("My words.\n")
    (root / "trained" / "training_args.bin").write_bytes(b"pickle")
    (root / "trained" / "checkpoint-2").mkdir()
    (root / "trained" / "checkpoint-2" / "optimizer.pt").write_bytes(b"pickle")
    (root / "trained" / "modeling_evil.py").write_text("raise SystemExit")
    (root / "trained" / ".env").write_text("HF_TOKEN=secret")
    (root / "pickle" / "pytorch_model.bin").write_bytes(b"pickle")
    edit_weights(root / "float", lambda w: w.update({P: w[P].float()}))
    edit_weights(root / "sum", lambda w: w.update({P: w[P] + 1}))
    other = fuse_model(tiny_model("gpt2"), FusionConfig(width=32))
    other.fusion_report.save(root / "receipt")
    (root / "bare" / "fusion_report.json").unlink()
    (root / "linked" / "vocab.json").symlink_to("/etc/hostname")


KNOWN = ["--license", "mit", "--base-model", "owner/base"]
UNKNOWN = {
    "no licence": ["good", "no-licence", "--base-model", "owner/base"],
    "no base": ["good", "no-base", "--license", "mit"],
}
COMMANDS = {
    "good": ["good", "good"],
    "sharded": ["sharded", "good", "--message", "smaller files"],
    "json": ["good", "owner/json", "--json", "--private", "--revision", "dev"],
    "trained": ["trained", "trained"],
    "readme": ["readme", "readme"],
    "readme again": ["good", "readme"],
    "bare code": ["stubbed", "bare-code", "--no-remote-code"],
    "dry": ["trained", "dry", "--dry-run"],
    "public": ["good", "good", "--private"],
    "failing": ["sharded", "failing"],
    "failing again": ["sharded", "failing-upload"],
    **{name: [name, name] for name in ("stock", "pickle", "float", "sum", "receipt", "bare", "linked", "absent")},
}


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    root = tmp_path_factory.mktemp("push")
    folders(root)
    commands = {name: ["push", str(root / folder), *rest, *KNOWN] for name, (folder, *rest) in COMMANDS.items()}
    commands |= {name: ["push", str(root / folder), *rest] for name, (folder, *rest) in UNKNOWN.items()}
    (root / "commands.json").write_text(json.dumps(commands))
    with loopback_hub() as hub:
        hub.fail = r"/failing/commit/|/failing-upload\.git/"
        printed = hub.run(root / "home", "hub/run_commands.py", root / "commands.json", root / "results.json")
    return SimpleNamespace(hub=hub, printed=printed, results=json.loads((root / "results.json").read_text()))


def test_what_goes_up(pushed):
    result = pushed.results["good"]
    assert result["code"] == 0, result["err"]
    repository = pushed.hub.repos["tester/good"]
    first = list(repository.commits.values())[1]
    assert set(first.files) == {
        "README.md",
        "fusion_errors.png",
        "config.json",
        "fusion_report.json",
        "generation_config.json",
        "model.safetensors",
        "modeling_mlp_fusion.py",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert f"Pushed: {pushed.hub.url}/tester/good/commit/" in result["out"]


def test_weights_of_an_earlier_push_go_in_the_same_commit(pushed):
    """A `model.safetensors` that stayed would be loaded instead of the shards."""
    repository = pushed.hub.repos["tester/good"]
    assert repository.messages == ["Upload fused model", "smaller files"]
    files = repository.files()
    assert "model.safetensors" not in files
    assert "model.safetensors.index.json" in files
    assert "tokenizer.json" in files


def test_json_private_branch(pushed):
    assert pushed.results["json"]["code"] == 0, pushed.results["json"]["err"]
    done = json.loads(pushed.results["json"]["out"])
    repository = pushed.hub.repos["owner/json"]
    assert repository.private
    assert done["repo_id"] == "owner/json"
    assert done["commit"] == repository.branches["dev"]
    assert sorted(done["uploaded"]) == sorted(repository.files("dev"))
    assert not repository.files("main")


def test_what_is_left_out_is_said(pushed):
    for name in ("trained", "dry"):
        out = pushed.results[name]["out"]
        assert "Left out: .env, checkpoint-2/, modeling_evil.py, training_args.bin" in out
    uploaded = set(pushed.hub.repos["tester/trained"].files())
    assert not uploaded & {".env", "modeling_evil.py", "training_args.bin", "checkpoint-2/optimizer.pt"}
    assert "Nothing was pushed" in pushed.results["dry"]["out"]


def test_the_owners_words_stay(pushed):
    """Also those that are in the repository alone."""
    readme = pushed.hub.repos["tester/readme"].files()["README.md"].decode()
    assert readme.count("My words.") == readme.count("## Fused FFNs") == 1


def test_no_remote_code(pushed):
    files = pushed.hub.repos["tester/bare-code"].files()
    assert "modeling_mlp_fusion.py" not in files
    assert "auto_map" not in json.loads(files["config.json"])
    assert "Left out: modeling_mlp_fusion.py" in pushed.results["bare code"]["out"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("stock", "is not a fused model"),
        ("pickle", "pytorch_model.bin is a pickle"),
        ("float", "stored as F32, cluster sizes are integers"),
        ("sum", "sums to 80, the layer had 64 units"),
        ("receipt", "the receipt of another fusion"),
        ("bare", "its receipt fusion_report.json is missing"),
        ("linked", "is a link that leads out of the folder"),
        ("absent", "no such folder"),
        ("dry", None),
    ],
)
def test_refused_before_the_hub_is_asked(pushed, name, reason):
    if reason is not None:
        assert pushed.results[name]["code"] == 1
        assert reason in pushed.results[name]["err"]
    assert f"tester/{name}" not in pushed.hub.repos


@pytest.mark.parametrize(("name", "option"), [("no licence", "--license"), ("no base", "--base-model")])
def test_what_is_not_known_is_asked_for(pushed, name, option):
    assert pushed.results[name]["code"] == 1
    assert "is not known" in pushed.results[name]["err"]
    assert f"add {option}" in pushed.results[name]["err"]
    assert f"tester/{UNKNOWN[name][1]}" not in pushed.hub.repos


def test_private_never_goes_to_a_public_repository(pushed):
    assert "tester/good is public already" in pushed.results["public"]["err"]
    assert len(pushed.hub.repos["tester/good"].messages) == 2


@pytest.mark.parametrize("name", ["failing", "failing again"])
def test_a_failed_push_changes_nothing(pushed, name):
    result = pushed.results[name]
    assert result["code"] == 1
    assert "no file there was changed: " in result["err"]
    assert "501" in result["err"]
    repository = pushed.hub.repos["tester/failing" if name == "failing" else "tester/failing-upload"]
    assert not repository.messages
    assert not repository.files()


def test_the_token_is_nowhere(pushed):
    """Not even where the server echoes it in its error."""
    assert "Authorization: ***" in pushed.results["failing"]["err"]
    assert TOKEN not in json.dumps(pushed.results) + pushed.printed
