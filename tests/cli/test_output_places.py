"""Where commands write: told before the work when it cannot be, and cleared of what killed runs have left."""

import signal
import subprocess
import sys
import time

import pytest
from conftest import tiny_model
from tiny_text import tiny_texts, tiny_tokenizer
from unreadable import unwritable

from hf_mlp_fusion import FusionConfig, FusionConfigError, fuse_model
from hf_mlp_fusion.comparison import Row, check_comparison_folder
from hf_mlp_fusion.comparison.results import add_row
from hf_mlp_fusion.comparison.row import Costs
from hf_mlp_fusion.files import check_writable, output_folder


@pytest.fixture
def places(tmp_path):
    model = tiny_model("bert")
    model.save_pretrained(tmp_path / "stock")
    model = type(model).from_pretrained(tmp_path / "stock")
    fuse_model(model, FusionConfig(width=16)).save_pretrained(tmp_path / "fused")
    for name in ("stock", "fused"):
        tiny_tokenizer("bert").save_pretrained(tmp_path / name)
    (tmp_path / "texts.txt").write_text("\n".join(tiny_texts(40)))
    (tmp_path / "closed").mkdir()
    return tmp_path


VERBS = {
    "fuse": ("fuse", "stock", "{out}"),
    "tune": ("tune", "fused", "{out}", "--texts", "texts.txt"),
    "export": ("export", "fused", "{out}"),
    "compare": ("compare", "stock", "--texts", "texts.txt", "--out", "{out}"),
    "bench": ("bench", "glue", "stock", "--data", "nowhere/sst2", "--out", "{out}"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_closed_place_is_told_before_anything_is_loaded(verb, cli, places, monkeypatch):
    monkeypatch.chdir(places)
    for name in ("fused", "stock"):
        (places / name / "model.safetensors").unlink()  # nothing can be loaded: only an earlier word passes
    with unwritable(places / "closed"):
        code, _, err = cli(*(part.format(out="closed/out") for part in VERBS[verb]))
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("error: closed/out")
    assert last.endswith("cannot be written (Permission denied): name another place, or give yourself permission")
    assert not any((places / "closed").iterdir())


def test_places_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FusionConfigError, match="cannot be written"):
        check_writable(tmp_path / "file" / "out")
    check_writable(tmp_path / "a" / "b" / "out")  # parents are made later
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_comparison_goes_into_no_other_folder(cli, places, monkeypatch):
    monkeypatch.chdir(places)
    before = sorted(path.name for path in (places / "stock").iterdir())
    for out in ("stock", "fused"):
        code, _, err = cli("compare", "stock", "--texts", "texts.txt", "--out", out)
        assert code == 1
        last = err.splitlines()[-1]
        assert last == f"error: {out} is not empty, and holds no comparison: name another folder with --out"
    assert sorted(path.name for path in (places / "stock").iterdir()) == before
    (places / "one").mkdir()
    check_comparison_folder(places / "one")
    (places / "one" / "results.jsonl").write_text("")
    check_comparison_folder(places / "one")
    with pytest.raises(FusionConfigError, match="is a file; name a folder"):
        check_comparison_folder(places / "texts.txt")


_WRITE = """
import sys, time
from hf_mlp_fusion.files import output_folder
with output_folder(sys.argv[1]) as folder:
    (folder / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_run_left_is_cleared_and_what_another_writes_is_not(tmp_path):
    out = tmp_path / "out"
    runs = [subprocess.Popen([sys.executable, "-c", _WRITE, out], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for run in runs:
            assert run.stdout.readline() == b"writing\n"
        left = {path for path in tmp_path.iterdir() if path.is_dir()}
        assert len(left) == 2
        runs[0].kill()
        runs[0].wait()
        with output_folder(out) as folder:
            (folder / "whole").write_text("whole")
        assert (out / "whole").is_file()
        hidden = [path for path in tmp_path.iterdir() if path.is_dir() and path.name.startswith(".")]
        assert len(hidden) == 1  # that of the run at work
        assert (hidden[0] / "half").is_file()
    finally:
        for run in runs:
            run.kill()
            run.wait()
            run.stdout.close()
    with output_folder(tmp_path / "out.2"):
        pass  # a neighbour's name
    with output_folder(out.with_name("other")):
        pass
    assert len([path for path in tmp_path.iterdir() if path.name.startswith(".")]) == 2  # folder and lock
    (out / "whole").unlink()
    with output_folder(out):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out", "out.2"]


def test_ctrl_c_has_the_last_word(places):
    command = [sys.executable, "-m", "hf_mlp_fusion.cli", "compare", "stock", "--texts", "texts.txt", "--width", "16"]
    run = subprocess.Popen(
        command,
        cwd=places,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells' background jobs ignore it
    )
    while not (places / "comparison" / "results.jsonl").is_file() and run.poll() is None:
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate()
    assert run.returncode == 130
    assert b"The finished rows are in comparison; the same command goes on from there." in err
    assert err.rstrip().endswith(b"stopped; nothing was left half-written")


def test_a_report_says_which_of_two_comparisons_it_shows(cli, places):
    folder = places / "both"
    folder.mkdir()
    about = {"model": "stock", "class": "BertForMaskedLM", "fused": 3, "data": "texts.txt", "samples": 4}
    about |= {"device": "cpu", "threads": 1, "versions": {"torch": "2"}}
    costs = {
        "forward": Costs(0.2, 0.1, 9, None),
        "training": Costs(0.4, 0.1, 9, None),
        "parameters": 9,
        "ffn_parameters": 3,
        "bytes": 36,
    }
    for width in (16, 32):
        recipe = {"recipe": FusionConfig(width=width).to_dict()}
        for method in ("original", "prune"):
            add_row(folder, Row(f"{method}{width}", f"table{width}", about | recipe, method, **costs))
    code, _, err = cli("report", folder)
    assert code == 0, err
    assert "Recipe: width 32" in err
    assert "Not shown, another comparison: Model: stock (BertForMaskedLM), 3 FFNs reduced; Recipe: width 16" in err
    for name in ("comparison.md", "index.html"):
        assert "Not shown, another comparison" in (folder / name).read_text(encoding="utf-8")
