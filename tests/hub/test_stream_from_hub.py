"""A sharded checkpoint on the Hub, fused shard by shard."""

import json

import pytest
from conftest import tiny_model
from loopback import EMPTY, Commit, Repository, loopback_hub


@pytest.mark.every
def test_streamed_from_a_repository(tmp_path):
    tiny_model("roberta").save_pretrained(tmp_path / "stock", max_shard_size="15KB")
    files = {path.name: path.read_bytes() for path in (tmp_path / "stock").iterdir()}
    assert len(files) > 4
    commands = {
        name: ["fuse", "tester/tiny", str(tmp_path / name), "--width", "32", "--max-shard-size", "10KB", *more]
        for name, more in (("plain", []), ("streamed", ["--stream"]))
    }
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    with loopback_hub() as hub:
        hub.repos["tester/tiny"] = Repository(commits={EMPTY: Commit(), "1" * 40: Commit(files)})
        hub.repos["tester/tiny"].branches["main"] = "1" * 40
        hub.run(tmp_path / "home", "hub/run_commands.py", tmp_path / "commands.json", tmp_path / "results.json")
    for name, result in json.loads((tmp_path / "results.json").read_text()).items():
        assert result["code"] == 0, (name, result["err"])
    written = {
        name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.suffix != ".json"}
        for name in commands
    }
    assert written["streamed"] == written["plain"]
    assert len(written["plain"]) > 1
