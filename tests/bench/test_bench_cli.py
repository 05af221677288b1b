import json

import pytest
from tiny_tasks import fill

from hf_mlp_fusion.bench.lines import Line, append_line


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def glue(cli, places, tmp_path):
    def run(*options):
        fixed = ("--seeds", 1, "--epochs", 1, "--batch-size", 8, "--max-length", 16, "--width", 16)
        places_ = (places / "roberta", "--data", places / "data", "--out", tmp_path / "lines.jsonl")
        return cli("bench", "glue", *places_, *fixed, *options)

    return run


def test_a_bench_is_run_tabulated_and_gone_on_with(cli, glue, tmp_path):
    code, out, _ = glue("--tasks", "sst2", "--methods", "unfused,fusion", "--rates", "1e-3")
    assert code == 0
    assert "roberta: one seed" in out
    first = (tmp_path / "lines.jsonl").read_text()
    command = json.loads(first.splitlines()[0])["command"]
    assert command.startswith("hf-mlp-fusion bench glue")
    code, out, _ = glue("--tasks", "sst2,mrpc", "--methods", "unfused,fusion", "--rates", "1e-3", "--markdown")
    assert code == 0
    assert "|  | parameters | sst2 | mrpc | average |" in out
    assert (tmp_path / "lines.jsonl").read_text().startswith(first)
    assert len((tmp_path / "lines.jsonl").read_text().splitlines()) == 4
    _, again, _ = cli("bench", "table", tmp_path / "lines.jsonl", "--markdown")
    assert again == out
    _, cells, _ = cli("bench", "table", tmp_path / "lines.jsonl", "--json")
    assert {cell["column"] for cell in json.loads(cells)} == {"sst2", "mrpc", "average"}
    _, figures, _ = cli("bench", "figures", tmp_path / "lines.jsonl", "fusion")
    assert [json.loads(line)["metric"] for line in figures.splitlines()] == ["accuracy", "accuracy", "f1"]


def test_a_table_of_some_lines(cli, tmp_path):
    path = tmp_path / "lines.jsonl"
    for seed in range(3):
        for method, rate in (("unfused", 1e-4), ("svd", 1e-4), ("svd", 1e-3)):
            score = [{"score": 70 + seed + 1e4 * rate}]
            key = f"{method} {seed} {rate}"
            append_line(path, Line(key, "glue", "m", "sst2", method, seed, rate, {}, fold=score, reported=score))

    def cells(*options):
        code, out, _ = cli("bench", "table", path, "--json", *options)
        assert code == 0
        return [(cell["method"], cell["seeds"], cell["rate"], cell["mean"]) for cell in json.loads(out)]

    assert cells() == [("unfused", 3, 1e-4, 72), ("svd", 3, 1e-3, 81)]
    assert cells("--seeds", 2) == [("unfused", 2, 1e-4, 71.5), ("svd", 2, 1e-3, 80.5)]
    assert cells("--methods", "svd", "--rates", "1e-4,5") == [("svd", 3, 1e-4, 72)]
    code, out, err = cli("bench", "table", path, "--rates", "5")
    assert (code, out) == (1, "")
    assert "holds no line that was asked for" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rates", "fast"), "'fast' is no list of learning rates; write 5e-5,1e-4"),
        (("--rates", "0"), "no list of learning rates"),
        (("--tasks", "wnli"), "there is no task 'wnli'"),
        (("--methods", "lora"), "there is no method 'lora'"),
        (("--tasks", "cola"), "has no train.parquet"),
    ],
)
def test_errors_are_one_line(glue, tmp_path, options, message):
    code, out, err = glue(*options)
    assert code == 1
    assert message in err
    assert out == ""
    assert not (tmp_path / "lines.jsonl").exists()


def test_no_lines(cli, tmp_path):
    code, _, err = cli("bench", "table", tmp_path / "none.jsonl")
    assert code == 1
    assert "there is no file" in err


@pytest.mark.every
def test_cost(cli, places):
    code, out, _ = cli("bench", "cost", places / "gpt2", "--width", 16, "--batch-size", 2, "--max-length", 8, "--json")
    assert code == 0
    assert [row["name"] for row in json.loads(out)] == ["unfused", "fused", "folded"]
