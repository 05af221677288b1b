import pytest
from conftest import tiny_model
from datasets import Dataset
from tiny_text import WORDS, tiny_tokenizer

from hf_mlp_fusion import FusionConfig
from hf_mlp_fusion.bench.runner import Job, run_job
from hf_mlp_fusion.bench.train import Settings
from hf_mlp_fusion.bench.webnlg import WEBNLG_BENCH, write_texts
from hf_mlp_fusion.bench.webnlg_data import WebNLGItem, prompt_batch


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("webnlg")
    tiny_model("gpt2").save_pretrained(root / "gpt2")
    tiny_tokenizer("gpt2").save_pretrained(root / "gpt2")
    (root / "data").mkdir()
    for split, categories in (("train", "AB"), ("validation", "AB"), ("test", "ABC")):
        rows = [
            {
                "category": category,
                "triples": [f"{WORDS[number]} | w9 | {WORDS[number + 1]}"],
                "references": [f"{WORDS[number]} w9 {WORDS[number + 1]}", "w9"][: 1 + number % 2],
            }
            for category in categories
            for number in range(5)
        ]
        Dataset.from_list(rows).to_parquet(root / "data" / f"{split}.parquet")
    return root


@pytest.mark.parametrize("method", ["unfused", "fusion_calibrated"])
def test_a_run_is_scored_on_what_it_writes(places, method):
    job = Job(
        "webnlg",
        str(places / "gpt2"),
        str(places / "data"),
        "webnlg",
        method,
        0,
        (1e-3,),
        FusionConfig(width=16),
        Settings(epochs=2, batch_size=4, max_length=32),
    )
    (line,) = run_job(job)
    assert [entry["score"] for entry in line.fold] == [-entry["loss"] for entry in line.fold]
    (scores,) = line.reported
    for name in ("bleu", "ter", "meteor_exact_stem"):
        for part in ("", "_seen", "_unseen"):
            assert scores[name + part] >= 0


def test_seen_categories_are_those_of_training(places):
    data = WEBNLG_BENCH.load_data("webnlg", str(places / "data"), None)
    assert {item.category for item in data.seen} == {"A", "B"}
    assert {item.category for item in data.unseen} == {"C"}


def test_texts_come_back_in_the_order_of_the_items():
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer("gpt2")
    items = [WebNLGItem("A", (f"{' '.join(WORDS[:size])} | w9 | w8",), ("w1",)) for size in (4, 1, 6, 2)]
    assert write_texts(model, tokenizer, items) == [write_texts(model, tokenizer, [item])[0] for item in items]
    assert len({prompt_batch([item], tokenizer, 99)["input_ids"].shape for item in items}) == 4
