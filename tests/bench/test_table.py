import dataclasses
import math

import pytest
from rich.console import Console

from hf_mlp_fusion.bench.figures import figures
from hf_mlp_fusion.bench.lines import Line
from hf_mlp_fusion.bench.table import markdown, print_tables, summarise
from hf_mlp_fusion.errors import DataError


def line(method, task, seed, rate, fold, reported, **changes):
    scores = [[{"score": value, "loss": 1.0} for value in values] for values in (fold, reported)]
    values = {"settings": {"epochs": 2}, "fold": scores[0], "reported": scores[1], "parameters": 2_000_000}
    return Line(f"{method}{task}{seed}{rate}", "glue", "m", task, method, seed, rate, **(values | changes))


LINES = [
    # The fold chooses rate 2 (mean 85 against 75) and the second epoch, whatever is reported.
    line("fusion", "sst2", 0, 1.0, [70, 80], [99, 99]),
    line("fusion", "sst2", 1, 1.0, [70, 60], [99, 99]),
    line("fusion", "sst2", 0, 2.0, [10, 90], [95, 60]),
    line("fusion", "sst2", 1, 2.0, [20, 80], [95, 70]),
    line("fusion", "cola", 0, 1.0, [5, 5], [20, 0]),  # of equal epochs the first
    line("fusion", "cola", 1, 1.0, [5, 4], [40, 0]),
    line("unfused", "sst2", 0, 1.0, [1], [80]),
    line("unfused", "sst2", 1, 1.0, [1], [80]),
    line("unfused", "cola", 0, 1.0, [1], [20]),
    line("unfused", "cola", 1, 1.0, [1], [20]),
]


def cells(lines):
    (table,) = summarise(lines)
    return {(cell.method, cell.column): cell for cell in table}


def test_the_fold_chooses_rate_and_epoch():
    found = cells(LINES)
    fusion = found["fusion", "sst2"]
    assert (fusion.mean, fusion.rate, fusion.seeds) == (65.0, 2.0, 2)
    assert fusion.spread == pytest.approx(math.sqrt(50))
    assert fusion.share == pytest.approx(65 / 80)
    assert found["fusion", "cola"].mean == 30.0
    average = found["fusion", "average"]
    # Seed 0: (60 + 20) / 2, seed 1: (70 + 40) / 2.
    assert (average.mean, average.rate) == (47.5, None)
    assert average.spread == pytest.approx(15 / math.sqrt(2))
    assert average.share == pytest.approx(47.5 / 50)
    assert average.share_error == pytest.approx(7.5 / 50)  # -7.5 and 7.5 are left of 40 and 55


def test_a_rate_that_lacks_seeds_is_not_chosen():
    assert cells(LINES[:3] + LINES[4:])["fusion", "sst2"].rate == 1.0


def test_shares_are_of_the_unfused_model_on_the_same_seeds():
    lines = [line("unfused", "sst2", 0, 1.0, [1], [80]), line("unfused", "sst2", 1, 1.0, [1], [20])]
    lines.append(line("fusion", "sst2", 0, 1.0, [1], [60]))
    fusion = cells(lines)["fusion", "sst2"]
    assert (fusion.share, fusion.share_error) == (pytest.approx(60 / 80), None)


def test_what_moves_with_the_unfused_model_has_a_share_without_error():
    lines = [line("unfused", "sst2", seed, 1.0, [1], [40 + 8 * seed]) for seed in range(4)]
    lines += [line("fusion", "sst2", seed, 1.0, [1], [10 + 2 * seed]) for seed in range(4)]
    fusion = cells(lines)["fusion", "sst2"]
    assert (fusion.share, fusion.share_error) == (0.25, 0.0)


def test_a_run_that_diverged_is_not_chosen():
    lines = [
        line("fusion", "sst2", 0, 1.0, [math.nan], [math.nan]),
        line("fusion", "sst2", 0, 2.0, [-5], [3]),
    ]
    assert cells(lines)["fusion", "sst2"].mean == 3.0


def test_markdown():
    rival = line("rival:other", "sst2", 0, 1.0, [1], [70], parameters=1_500_000)
    assert markdown([rival, *LINES]) == (
        "m: mean and standard deviation over 2 seeds\n\n"
        "|  | parameters | sst2 | cola | average |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| unfused | 2.0 M | 80.00 ± 0.00 | 20.00 ± 0.00 | 50.00 ± 0.00 |\n"
        "| fusion | 2.0 M | 65.00 ± 7.07 | 30.00 ± 14.14 | 47.50 ± 10.61 (95.0 ± 15.0 %) |\n"
        "| rival:other | 1.5 M | 70.00, one seed | – | – |\n"
    )


def test_models_and_settings_have_tables_of_their_own():
    other = [dataclasses.replace(item, settings={"epochs": 3}) for item in LINES]
    assert len(summarise([*LINES, *other])) == 2


def test_recipes_are_not_mixed():
    runs = [
        line("fusion", "sst2", 0, 1.0, [1], [value], settings={"epochs": 2, "recipe": {"width": width}})
        for width, value in ((64, 70), (32, 50))
    ]
    unfused = line("unfused", "sst2", 0, 1.0, [1], [80])
    wide, narrow = summarise([*runs, unfused])
    assert [(cell.method, cell.mean) for cell in wide] == [("unfused", 80), ("fusion", 70)]
    assert [(cell.method, cell.mean) for cell in narrow] == [("unfused", 80), ("fusion", 50)]


def test_what_was_refused_is_said(capsys):
    refused = line("layer_drop", "sst2", 0, 1.0, [], [], refused="two stacks")
    print_tables([*LINES, refused], Console(width=100))
    assert "sst2, every second layer: two stacks" in capsys.readouterr().out


def test_metrics_of_a_bench_are_columns():
    webnlg = Line(
        "k",
        "webnlg",
        "m",
        "webnlg",
        "unfused",
        0,
        1.0,
        {},
        fold=[{"loss": 2.0, "score": -2.0}, {"loss": 1.0, "score": -1.0}],
        reported=[{"bleu": 30.0, "ter": 60.0, "meteor_exact_stem": 40.0}],
    )
    assert [cell.column for cell in summarise([webnlg])[0]] == ["bleu", "ter"]


def test_figures_for_a_card():
    both = dataclasses.replace(
        LINES[2], command="hf-mlp-fusion bench glue", reported=[{"accuracy": 1.0}, {"accuracy": 60.0}]
    )
    other = dataclasses.replace(LINES[3], reported=[{"accuracy": 1.0}, {"accuracy": 70.0}])
    (found,) = figures([both, other, *LINES[6:]], "fusion")
    assert (found.task, found.dataset, found.split, found.metric) == (
        "text-classification",
        "sst2",
        "validation",
        "accuracy",
    )
    assert (found.value, found.spread, found.seeds, found.command) == (65.0, 7.07, 2, "hf-mlp-fusion bench glue")
    with pytest.raises(DataError, match="no line is of the method 'svd'; there are lines of fusion, unfused"):
        figures(LINES, "svd")
