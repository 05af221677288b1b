"""How much memory may be used, and that what runs on batches does not depend on how they are cut."""

import logging
import resource
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import model_inputs, tiny_model
from tiny_batches import batches

from hf_mlp_fusion import FusionConfig, FusionError, fuse_model
from hf_mlp_fusion.data import fitting_pieces, in_pieces, progress, row_bytes, single_rows
from hf_mlp_fusion.data.progress import Progress, progress_over
from hf_mlp_fusion.errors import MemoryLimitError
from hf_mlp_fusion.files import budget
from hf_mlp_fusion.fusion.calibration import collect_moments, kernel_rows
from hf_mlp_fusion.measure import expert_load, language_loss, output_error
from hf_mlp_fusion.modeling.find import find_ffns

CPU = torch.device("cpu")
FAMILIES = ["bert", "gpt2", "switch_transformers"]


def version_two(root):
    """A cgroup of version 2 with 5 MB of page cache."""
    group = root / "user" / "job"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("100000000\n")
    (group / "memory.current").write_text("40000000\n")
    (group / "memory.stat").write_text("anon 35000000\ninactive_file 5000000\n")
    (root / "user" / "memory.max").write_text("max\n")
    (root / "user" / "memory.current").write_text("40000000\n")
    (root / "user" / "memory.stat").write_text("inactive_file 5000000\n")
    return "0::/user/job\n"


def version_one(root):
    """The same of version 1."""
    group = root / "memory" / "job"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("100000000\n")
    (group / "memory.usage_in_bytes").write_text("40000000\n")
    (group / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 5000000\n")
    return "5:cpu:/\n4:memory:/job\n0::/\n"


@pytest.mark.parametrize("make", [version_two, version_one])
def test_a_cgroup_limits_what_there_is(make, tmp_path, monkeypatch):
    lines = tmp_path / "cgroup"
    lines.write_text(make(tmp_path / "root"))
    monkeypatch.setattr(budget, "_CGROUPS", tmp_path / "root")
    monkeypatch.setattr(budget, "_OWN_CGROUP", lines)
    assert budget.available_bytes(CPU) == 65_000_000
    assert budget.spare_bytes(CPU) == 32_500_000
    budget.check_room(65_000_000, CPU, "this", "less")
    with pytest.raises(
        MemoryLimitError, match=r"^this needs about 70 MB of memory, and this machine has 65 MB to spare: less$"
    ) as raised:
        budget.check_room(70_000_000, CPU, "this", "less")
    assert isinstance(raised.value, FusionError)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_an_address_space_limits_what_there_is(monkeypatch):
    used = budget.psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda which: (used + 10**8, used + 10**8))
    assert budget.available_bytes(CPU) <= 1.1 * 10**8


def test_pieces_hold_every_row_once():
    ids = torch.arange(21).view(7, 3)
    batch = {"input_ids": ids, "attention_mask": ids * 0 + 1, "position_ids": torch.arange(3)[None]}
    pieces = list(in_pieces([batch, {"input_ids": ids[:2]}], 3))
    assert [len(piece["input_ids"]) for piece in pieces] == [3, 3, 1, 2]
    assert torch.equal(torch.cat([piece["input_ids"] for piece in pieces[:3]]), ids)
    assert all(piece["position_ids"].shape == (1, 3) for piece in pieces[:3])
    assert len(list(single_rows([batch]))) == 7


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_measured_does_not_depend_on_the_room(family, monkeypatch):
    """Batches of eight rows, at once and row by row."""
    model = tiny_model(family).double()
    fused = fuse_model(model, FusionConfig(width=16))
    data = batches(model, count=3, rows=8)
    if "labels" not in data[0]:
        data = [batch | {"labels": batch["input_ids"]} for batch in data]

    def measured():
        moments = collect_moments(model, list(find_ffns(model)), data)
        error = output_error(model, fused, data)
        loads = {name: load.tokens for name, load in expert_load(model, data).items()}
        sums = {name: (item.count, item.gram, item.cross, item.y_mean) for name, item in moments.items()}
        return sums, error.ffns, error.hidden_state, language_loss(model, data).loss, loads

    whole = measured()
    monkeypatch.setattr("hf_mlp_fusion.data.footprint.spare_bytes", lambda device: 1)
    rows = []
    hook = model.register_forward_pre_hook(lambda *args: rows.append(1), with_kwargs=False)
    assert [len(piece["input_ids"]) for piece in fitting_pieces(model, data)] == [1] * 24
    torch.testing.assert_close(measured(), whole, rtol=1e-5, atol=1e-7)
    hook.remove()
    assert len(rows) >= 2 * 24


def test_a_row_takes_more_with_gradients_logits_and_tokens():
    model = tiny_model("gpt2")
    plain = row_bytes(model, 20)
    assert row_bytes(model, 40) >= 2 * plain
    assert row_bytes(model, 20, logits=True) == plain + 3 * 4 * 20 * 99
    assert row_bytes(model, 20, gradients=True) > 2 * plain
    # Experts are many, but a token sees one.
    few, many = (tiny_model("switch_transformers", num_experts=number) for number in (4, 16))
    assert row_bytes(many, 20, gradients=True) < 1.1 * row_bytes(few, 20, gradients=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_are_matched_on_rows_without_padding_that_are_not_too_long(family, monkeypatch):
    model = tiny_model(family)
    data = batches(model, count=12)
    rows = kernel_rows(model, data)
    assert len(rows) == 32
    assert all(len(row["input_ids"]) == 1 for row in rows)
    assert all(row["attention_mask"].all() for row in rows)
    assert "labels" in rows[0]
    monkeypatch.setattr("hf_mlp_fusion.fusion.calibration.NTK_TOKENS", 5)
    short = kernel_rows(model, data)
    assert all(tensor.shape == (1, 5) for row in short for tensor in row.values())
    assert torch.equal(short[9]["input_ids"], rows[9]["input_ids"][:, :5])


def test_one_bar_goes_over_all_stages_and_ends_full(monkeypatch):
    shown = []

    class Bar:
        def __init__(self, **given):
            shown.append({"total": given["total"], "n": 0.0, "titles": []})

        def update(self, work):
            shown[-1]["n"] += work

        def set_description(self, title):
            shown[-1]["titles"].append(title)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(progress.transformers_logging, "tqdm", Bar)
    model = tiny_model("gpt2")
    fuse_model(model, FusionConfig(width=16, power=1), calibration=batches(model))
    (bar,) = shown  # one, over everything
    assert bar["n"] == bar["total"]
    titles = [title for title in bar["titles"] if title != "Fusing"]
    expected = [
        "Fusing (kernels)",
        "Fusing (metric)",
        "Fusing (fusion)",
        "Fusing (moments)",
        "Fusing (fusion)",
        "Fusing (kernels)",
    ]
    assert titles == expected


def test_a_stage_of_minutes_is_announced(monkeypatch, caplog):
    clock = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    for each, said in ((0.5, 0), (5.0, 1)):
        with caplog.at_level(logging.WARNING), Progress(100, "kernels", shorter="fewer rows shorten it") as stage:
            for _ in range(20):
                clock[0] += each
                stage.update()
        assert caplog.messages == ["kernels: about 8 minutes; fewer rows shorten it"] * said


def test_a_bar_never_goes_beyond_its_end():
    """tqdm warns of that, and warnings are errors here; rounding is enough for it."""
    for work in (50.0, 10.0, 0.1):
        with progress_over(10.0, "Working"), Progress(7, "a", work=work) as stage:
            for _ in range(7):
                stage.update()


def test_a_fusion_that_does_not_fit_is_refused_before_it_starts(monkeypatch):
    model = tiny_model("bert")
    monkeypatch.setattr("hf_mlp_fusion.files.budget.available_bytes", lambda device: 1000)
    monkeypatch.setattr("hf_mlp_fusion.fusion.fuse.reduce_ffns", lambda *args, **kwargs: pytest.fail("it started"))
    with pytest.raises(MemoryLimitError, match=r"this fusion needs about .* MB of memory, and this machine has 0 MB"):
        fuse_model(model, FusionConfig(width=16), calibration=[model_inputs(model)])
