import dataclasses
import json
import queue
import types
from multiprocessing.pool import ThreadPool

import pytest
import torch
from datasets import Dataset
from tiny_tasks import fill
from tiny_text import tiny_tokenizer

from hf_mlp_fusion import FusionConfig, FusionConfigError
from hf_mlp_fusion.bench import glue, runner
from hf_mlp_fusion.bench.glue import GLUE, GLUE_BENCH
from hf_mlp_fusion.bench.lines import append_line, read_lines
from hf_mlp_fusion.bench.runner import Job, jobs_for, run_job, run_jobs
from hf_mlp_fusion.bench.train import Settings
from hf_mlp_fusion.errors import DataError


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("bench"))


def job(places, family="roberta", task="sst2", method="unfused", **changes):
    template = Job(
        "glue",
        str(places / family),
        str(places / "data"),
        task,
        method,
        0,
        (1e-3,),
        FusionConfig(width=16),
        Settings(epochs=2, batch_size=8, max_length=16),
    )
    return dataclasses.replace(template, **changes)


def jobs_of(places, methods, done=(), tasks=("sst2",), seeds=1, **changes):
    return jobs_for(job(places, **changes), list(tasks), list(methods), seeds, set(done))


@pytest.mark.parametrize(
    ("task", "metrics"),
    [("sst2", {"accuracy"}), ("mrpc", {"accuracy", "f1"}), ("stsb", {"pearson", "spearmanr"})],
)
def test_a_run_is_scored_after_every_epoch(places, task, metrics):
    (line,) = run_job(job(places, task=task, method="fusion"))
    assert len(line.fold) == len(line.reported) == 2
    for entry in (*line.fold, *line.reported):
        assert set(entry) == metrics | {"loss", "score"}
        assert entry["score"] == pytest.approx(sum(entry[name] for name in metrics) / len(metrics))
    assert line.refused is None
    assert line.settings["recipe"]["width"] == 16


def test_the_same_run_gives_the_same_figures(places):
    first, again = (next(run_job(job(places, method="fusion_calibrated"))) for _ in range(2))
    assert first.fold == again.fold
    assert first.reported == again.reported


def test_each_rate_starts_from_the_same_model(places):
    both = list(run_job(job(places, method="fusion", rates=(1e-3, 1e-2))))
    alone = list(run_job(job(places, method="fusion", rates=(1e-2,))))
    assert both[1].reported == alone[0].reported
    assert both[0].reported != both[1].reported


def test_runs_that_are_there_are_not_run_again(places, tmp_path):
    path = tmp_path / "lines.jsonl"
    jobs = jobs_of(places, ["unfused", "prune"], seeds=2)
    assert [(item.seed, item.method) for item in jobs] == [(0, "unfused"), (0, "prune"), (1, "unfused"), (1, "prune")]
    for line in run_jobs(jobs[:1]):
        append_line(path, line)
    path.write_text(path.read_text() + '{"key": "torn')
    done = {line.key for line in read_lines(path)}
    assert jobs_of(places, ["unfused", "prune"], done, seeds=2) == jobs[1:]
    (grid,) = jobs_of(places, ["unfused"], done, rates=(1e-3, 1e-2))
    assert grid.rates == (1e-2,)
    others = [{"recipe": FusionConfig(width=32)}, {"settings": Settings(epochs=1)}, {"limit": 8}]
    keys = {job(places, method="prune", **changes).line(1e-3).key for changes in ({}, *others)}
    assert len(keys) == 4
    # The recipe is nothing to the unfused model: another width does not run it again.
    assert job(places, recipe=FusionConfig(width=32)).line(1e-3).key in done


@pytest.mark.every
def test_processes_give_what_one_gives(places):
    jobs = jobs_of(places, ["unfused", "fusion"])
    key = lambda line: line.key  # noqa: E731
    several = sorted(run_jobs(jobs, processes=2), key=key)
    alone = sorted(run_jobs(jobs), key=key)
    assert [line.reported for line in several] == [line.reported for line in alone]


def test_processes_that_a_gpu_is_too_small_for_lose_no_other_run(monkeypatch, places):
    def run(job):
        yield job.line(1e-3)
        if job.method == "prune":
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield job.line(1e-2)

    monkeypatch.setattr(runner, "run_job", run)
    monkeypatch.setattr(runner, "_start_worker", lambda turns: turns.get())
    threads = types.SimpleNamespace(SimpleQueue=queue.SimpleQueue, Pool=ThreadPool)
    monkeypatch.setattr(torch.multiprocessing, "get_context", lambda _: threads)
    lines = []
    with pytest.raises(FusionConfigError, match=r"1 runs found too little memory .* fewer --processes"):
        lines.extend(run_jobs(jobs_of(places, ["prune", "unfused", "fusion"], rates=(1e-3, 1e-2)), processes=2))
    every = {(method, rate) for method in ("prune", "unfused", "fusion") for rate in (1e-3, 1e-2)}
    assert {(line.method, line.rate) for line in lines} == every - {("prune", 1e-2)}


def test_a_rival_is_trained_in_the_models_place(places):
    (line,) = run_job(job(places, method=f"rival:{places / 'gpt2'}"))
    assert line.method == "rival:gpt2"
    assert line.model == "roberta"
    assert "recipe" not in line.settings
    assert len(line.reported) == 2


def test_the_fold_is_never_trained_on(places):
    data, again = (GLUE_BENCH.load_data("sst2", str(places / "data"), None) for _ in range(2))
    assert len(data.fold) == 4
    assert len(data.train) == 36
    assert data.fold["sentence"] == again.fold["sentence"]
    whole = Dataset.from_parquet(str(places / "data" / "sst2" / "train.parquet"))
    assert sorted([*data.train["sentence"], *data.fold["sentence"]]) == sorted(whole["sentence"])
    assert len(GLUE_BENCH.load_data("sst2", str(places / "data"), 10).train) == 10


def test_a_model_that_writes_text_is_asked_in_words(places, monkeypatch):
    monkeypatch.setitem(glue.GLUE, "sst2", dataclasses.replace(GLUE["sst2"], labels=("w1 w2", "w3")))
    (line,) = run_job(job(places, "switch_transformers", method="fusion_calibrated"))
    assert len(line.reported) == 2
    assert 0 <= line.reported[0]["accuracy"] <= 100


def test_words_are_scored_by_their_first_token(places, monkeypatch):
    monkeypatch.setitem(glue.GLUE, "sst2", dataclasses.replace(GLUE["sst2"], labels=("w1 w2", "w3")))
    coded = glue._Coded(GLUE["sst2"], tiny_tokenizer("switch_transformers"), 16, writes=True)
    (row,) = coded.rows(Dataset.from_dict({"sentence": ["w5"], "label": [1]}))
    assert row["labels"] == coded.words[1]
    logits = torch.zeros(2, 3, 99)
    logits[0, 0, coded.firsts[1]] = logits[1, 0, coded.firsts[0]] = 1.0
    logits[:, 1:] = torch.randn(2, 2, 99)  # what comes after the first token does not count
    outcome = type("Outcome", (), {})()
    outcome.predictions = coded.label_logits((logits, None), None).numpy()
    outcome.label_ids = torch.tensor([coded.words[1] + [1], coded.words[1] + [1]]).numpy()
    assert coded.score(outcome) == {"accuracy": 50.0, "score": 50.0}


def test_what_a_task_or_method_cannot_do_is_said_and_the_rest_goes_on(places):
    (score,) = run_job(job(places, "switch_transformers", task="stsb"))
    assert "asks for a number" in score.refused
    (words,) = run_job(job(places, "switch_transformers"))  # this vocabulary has neither word
    assert "same token" in words.refused
    (dropped,) = run_job(job(places, method="layer_drop", recipe=FusionConfig(width=16, layers="last:1")))
    assert "two or more" in dropped.refused
    assert dropped.reported == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["sst3"]}, "no task 'sst3'; choose from sst2, cola"),
        ({"methods": ["fussion"]}, "no method 'fussion'; choose from unfused, fusion"),
    ],
)
def test_unknown_names_are_refused(places, changes, message):
    with pytest.raises(FusionConfigError, match=message):
        jobs_of(places, **({"methods": ["unfused"]} | changes))


def test_missing_data_are_refused(places, tmp_path):
    with pytest.raises(DataError, match=r"cola has no train.parquet; give a folder"):
        GLUE_BENCH.load_data("cola", str(places / "data"), None)
    (tmp_path / "sst2").mkdir()
    Dataset.from_dict({"text": ["w1"]}).to_parquet(tmp_path / "sst2" / "train.parquet")
    with pytest.raises(DataError, match="lacks the columns label, sentence"):
        GLUE_BENCH.load_data("sst2", str(tmp_path), None)
    with pytest.raises(DataError, match="no-such/data has no sst2/train"):
        GLUE_BENCH.load_data("sst2", "no-such/data", None)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text(json.dumps({"recipe": 1}) + "\n")
    with pytest.raises(DataError, match="no line of a bench"):
        read_lines(path)
