"""The metrics against values computed by hand, published, or by the libraries beneath them."""

import math
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, TER

from hf_mlp_fusion.errors import DataError, FusionConfigError
from hf_mlp_fusion.metrics import load

# The example of nltk's documentation of `meteor_score`, with the score that it gives there.
HYPOTHESIS = "It is a guide to action which ensures that the military always obeys the commands of the party"
REFERENCES = [
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "It is the guiding principle which guarantees the military forces always being under the command of the Party",
    "It is the practical guide for the army always to heed the directions of the party",
]
PUBLISHED = 0.6944

TEXTS = ("bleu", "ter", "meteor_exact_stem")
words = st.lists(st.sampled_from(["the", "a", "cat", "cats", "sat", "on", ","]), min_size=1, max_size=9).map(" ".join)
needs_wordnet = pytest.mark.skipif(
    not Path("/usr/share/wordnet/data.noun").is_file(), reason="needs WordNet: apt install wordnet-base"
)


def glue(task, predictions, references):
    return load("glue", task).compute(predictions=predictions, references=references)


def score(name, predictions, references):
    result = load(name).compute(predictions=predictions, references=references)
    assert list(result) == [name]
    return result[name]


def test_classification_by_hand():
    predictions, references = [1, 1, 1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 1, 1, 0, 0]  # 3 true, 1 false of each kind
    for task in ("sst2", "mnli", "mnli_matched", "qnli", "rte"):
        assert glue(task, predictions, references) == {"accuracy": 0.75}
    assert glue("mrpc", predictions, references) == {"accuracy": 0.75, "f1": pytest.approx(6 / 8)}
    assert glue("cola", predictions, references) == {"matthews_correlation": pytest.approx((9 - 1) / 16)}
    assert glue("mnli", [2, 1, 0], [2, 0, 0]) == {"accuracy": pytest.approx(2 / 3)}


def test_correlations_by_hand():
    result = glue("stsb", np.array([1, 2, 4], np.float32), [1.0, 3.0, 2.0])
    # Deviations (-4, -1, 5)/3 and (-1, 1, 0); ranks 1 2 3 and 1 3 2.
    assert result == {"pearson": pytest.approx(1 / math.sqrt(42 / 9 * 2)), "spearmanr": pytest.approx(0.5)}
    assert glue("stsb", [3, 2, 1], [1, 2, 3]) == {"pearson": pytest.approx(-1), "spearmanr": pytest.approx(-1)}


@pytest.mark.parametrize("constant", [[1, 1, 1], [0, 0, 0]])
def test_constants_correlate_as_nothing(constant):
    for predictions, references in ((constant, [0, 1, 2]), ([0, 1, 1], constant), (constant, constant)):
        assert glue("stsb", predictions, references) == {"pearson": 0.0, "spearmanr": 0.0}
    assert glue("cola", constant, [0, 1, 1]) == {"matthews_correlation": 0.0}
    assert glue("cola", constant, constant) == {"matthews_correlation": 0.0}
    assert glue("mrpc", [0, 0], [0, 0]) == {"accuracy": 1.0, "f1": 0.0}


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_scores_of_a_diverged_model_are_nan(broken):
    assert all(math.isnan(value) for value in glue("stsb", [1.0, broken, 2.0], [1.0, 2.0, 3.0]).values())


@given(pairs=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_glue_scores_are_bounded(pairs):
    predictions, references = (list(column) for column in zip(*pairs, strict=True))
    same = glue("mrpc", predictions, references)
    assert same == glue("mrpc", predictions[::-1], references[::-1])
    assert all(0 <= value <= 1 for value in same.values())
    assert -1 <= glue("cola", predictions, references)["matthews_correlation"] <= 1 + 1e-12
    assert all(abs(value) <= 1 + 1e-12 for value in glue("stsb", predictions, references).values())
    assert glue("sst2", references, references) == {"accuracy": 1.0}


def test_bleu_and_ter_are_those_of_sacrebleu():
    other = ["The cat sat.", "A dog ran off."]
    two = [REFERENCES[:2], other]
    streams = [[REFERENCES[0], other[0]], [REFERENCES[1], other[1]]]
    predictions = [HYPOTHESIS, "The dog sat."]
    assert score("bleu", predictions, two) == BLEU().corpus_score(predictions, streams).score > 1
    assert score("ter", predictions, two) == TER().corpus_score(predictions, streams).score > 1


def test_rows_may_have_different_numbers_of_references():
    """Corpus TER is edits by mean reference length, so a row with fewer references adds up from rows scored alone."""
    predictions, references = ["a b c x", "d e f g"], [["a b c d"], ["d e f", "d e f g h h"]]
    # 1 edit in 4 words, and 1 edit (to the first) in (3 + 6) / 2 words.
    assert score("ter", predictions, references) == pytest.approx(100 * 2 / (4 + 4.5))
    # A reference said twice changes no n-gram and no nearest length; an empty one would be the nearest of short texts.
    assert (
        score("bleu", predictions, references) == score("bleu", predictions, [references[0] * 2, references[1]]) > 50
    )


def test_meteor_matches_equal_words_and_stems():
    # "cats" ~ "cat": 3 of 3 words match in one chunk, so only the penalty of one chunk in three is off.
    assert score("meteor_exact_stem", ["The cats sat"], [["a b", "the cat SAT"]]) == pytest.approx(1 - 0.5 / 27)
    # 2 of 2 words in 4: precision 1, recall 1/2, F 10 P R / (R + 9 P), one chunk of two matches.
    by_hand = 10 * 0.5 / (0.5 + 9) * (1 - 0.5 / 8)
    assert score("meteor_exact_stem", ["on mats"], [["cats sat on mats"]]) == pytest.approx(by_hand)
    mean = score("meteor_exact_stem", ["The cats sat", "x"], [["the cat sat"], ["y"]])
    assert mean == pytest.approx((1 - 0.5 / 27) / 2)
    assert score("meteor_exact_stem", ["", "x"], [["a"], [""]]) == 0


@needs_wordnet
def test_meteor_gives_the_published_value():
    assert score("meteor", [HYPOTHESIS], [REFERENCES]) == pytest.approx(PUBLISHED, abs=5e-5)


@needs_wordnet
def test_meteor_knows_synonyms():
    # 1 of 2 words matches. nltk looks up stems, so that "automobile", as "automobil", would not be found.
    assert score("meteor", ["a car"], [["the auto"]]) == pytest.approx(0.5 * (1 - 0.5))
    assert score("meteor_exact_stem", ["a car"], [["the auto"]]) == 0


def test_meteor_without_wordnet_names_the_mend(tmp_path, monkeypatch):
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    with pytest.raises(DataError, match=r"apt install wordnet-base.*meteor_exact_stem"):
        load("meteor")


@given(texts=st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_text_scores_are_bounded_and_best_for_the_references(texts):
    predictions, references = (list(column) for column in zip(*texts, strict=True))
    first = [row[0] for row in references]
    assert 0 <= score("bleu", predictions, references) <= 100 + 1e-9
    assert score("ter", predictions, references) >= 0 == score("ter", first, references)
    assert 0 <= score("meteor_exact_stem", predictions, references) < 1
    assert score("meteor_exact_stem", ["cat sat on"], [["cat sat on", *first]]) == pytest.approx(1 - 0.5 / 27)


@pytest.mark.parametrize("name", TEXTS)
def test_rows_can_come_in_batches(name):
    metric = load(name)
    metric.add_batch(predictions=["the cat sat down"], references=[["the cat sat there", "a cat"]])
    metric.add_batch(predictions=["a dog ran off"], references=[["the dog ran off"]])
    at_once = score(name, ["the cat sat down", "a dog ran off"], [["the cat sat there", "a cat"], ["the dog ran off"]])
    assert metric.compute() == {name: at_once}
    metric.add_batch(predictions=["x"], references=[["y"]])  # and it can be used again
    assert metric.compute()[name] != at_once


def test_what_cannot_be_scored_is_refused():
    for call, message in (
        (lambda: load("glue", "sst2").compute(), "nothing to score"),
        (lambda: glue("sst2", [], []), "nothing to score"),
        (lambda: glue("sst2", [1, 0], [-1, -1]), "hides the labels"),
        (lambda: score("bleu", ["a"], [[]]), "row 0 needs"),
        (lambda: score("ter", ["a", "b"], [["a"], [None]]), "row 1 needs"),
        (lambda: score("meteor_exact_stem", [], []), "nothing to score"),
    ):
        with pytest.raises(DataError, match=message):
            call()
    with pytest.raises(ValueError, match="Mismatch in the number"):
        glue("sst2", [1, 0], [1])
    with pytest.raises(ValueError, match="string"):
        score("bleu", ["a"], ["not a list"])
    for arguments, message in (
        (("rouge",), "no metric 'rouge'; the metrics are bleu, glue"),
        (("glue",), "no configuration 'default'; it has sst2, cola"),
        (("bleu", "sst2"), "no configuration 'sst2'"),
    ):
        with pytest.raises(FusionConfigError, match=message):
            load(*arguments)


def test_a_missing_package_names_the_mend(monkeypatch):
    monkeypatch.delitem(sys.modules, "hf_mlp_fusion.metrics.bleu", raising=False)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(FusionConfigError, match=r"'bleu' needs sacrebleu.*hf_mlp_fusion\[bench\]"):
        load("bleu")


def score_all(number):
    """Scores with every metric but METEOR, in a process of its own."""
    results = [glue("mrpc", [1, number % 2], [1, 0]) for _ in range(5)]
    return results[0], [score(name, [f"a b c d {number}"], [["a b c d 1"]]) for name in TEXTS], os.getpid()


@pytest.mark.every
def test_processes_score_at_once_and_leave_no_file(tmp_path, monkeypatch):
    for name in ("HOME", "HF_HOME", "TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_mlp_fusion.metrics.glue", "hf_mlp_fusion.metrics.meteor"])
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        results = list(pool.map(score_all, range(8)))
    for number, (f1, texts, _) in enumerate(results):
        assert f1["accuracy"] == (0.5 if number % 2 else 1.0)
        assert (texts[0] == pytest.approx(100)) == (texts[1] == 0) == (number == 1)
    assert len({process for *_, process in results}) > 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
