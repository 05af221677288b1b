"""Model cards: the whole text, what is merged into what, and that nothing of others' gets out of its place."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import tiny_model
from datasets import Dataset
from huggingface_hub import ModelCard
from tiny_text import tiny_texts, tiny_tokenizer

from hf_mlp_fusion import FusionConfig, FusionConfigError, fuse_model
from hf_mlp_fusion.cli import main
from hf_mlp_fusion.errors import DataError
from hf_mlp_fusion.hub import Measured, read_measured, write_card
from hf_mlp_fusion.hub.card import FusionCard
from hf_mlp_fusion.hub.cards import card_files
from hf_mlp_fusion.hub.saved import SavedModel
from hf_mlp_fusion.recipe.report import FFNReport, FusionReport, SkippedFFN
from hf_mlp_fusion.recipe.section import FFNWidth, FusionSection

GOLDEN = Path(__file__).with_name("card.md")
KNOWN = {"license": "mit", "base_model": "owner/base"}


def saved(**changes):
    """A model as it might lie in a folder: two FFNs fused, one left."""
    names = ("encoder.layer.1", "encoder.layer.2")
    report = FusionReport(
        recipe=FusionConfig(width=16, layers="last:2").to_dict(),
        source={"name_or_path": "/home/me/base", "model_type": "roberta", "architecture": "RobertaForMaskedLM"},
        ffns=[
            FFNReport(name, 64, 16, 0.25, 8, 3, 2128, 544, 0.1, "obs+output", 640, error)
            for name, error in zip(names, (0.125, 0.25), strict=True)
        ],
        skipped=[SkippedFFN("encoder.layer.0", 64, "not among layers='last:2'")],
        parameters_before=12531,
        parameters_after=9363,
        bytes_before=50444,
        bytes_after=37900,
        ffn_parameters=6384,
        fused_share=0.667,
        seconds=1.5,
        warnings=["a width below a quarter"],
        versions={"hf_mlp_fusion": "0.1.0"},
    )
    section = FusionSection(
        FusionConfig(width=16, layers="last:2"), report.source, {name: FFNWidth(16, 64) for name in names}
    )
    config = {"model_type": "fused_roberta", "architectures": ["FusedRobertaForMaskedLM"]}
    return SavedModel(config, section, replace(report, **changes))


def test_the_whole_card():
    measured = [
        Measured(
            "text-classification", "nyu-mll/glue", "validation", "accuracy", 83.19, 0.79, 5, "python finetune.py"
        ),
        Measured("fill-mask", "wikitext", "test", "loss", 2.5),
    ]
    card = FusionCard(
        "owner/fused",
        saved(),
        base_model="owner/base",
        licence={"license": "other", "license_name": "mixed"},
        license_note="Not for publication.",
        measured=measured,
        picture="fusion_errors.png",
    )
    assert card.merge_into(None) == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("power", "said"),
    [(0.0, "multiplies nothing"), (0.5, "Their power of 0.5, the scaling matrix P"), (1.0, "These numbers,")],
)
def test_the_card_tells_what_stands_apart(power, said, tmp_path):
    fuse_model(tiny_model("roberta"), FusionConfig(width=16, power=power)).save_pretrained(tmp_path)
    write_card(tmp_path, **KNOWN)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert said in text
    assert ("for inference only" in text) == (power > 0)
    assert ("Adam-like" in text) == (power > 0)


@pytest.fixture
def folder(tmp_path):
    fused = fuse_model(tiny_model("roberta"), FusionConfig(width=16))
    fused.save_pretrained(tmp_path / "fused")
    tiny_tokenizer("roberta").save_pretrained(tmp_path / "fused")
    return tmp_path / "fused"


def test_the_code_in_a_card_runs(folder, monkeypatch, tmp_path):
    write_card(folder, **KNOWN)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)  # where "fused" is the folder
    rows = tiny_tokenizer("roberta")(tiny_texts(2))["input_ids"]
    names = {
        "dataset": Dataset.from_dict({"input_ids": [row[:3] for row in rows], "labels": [row[:3] for row in rows]})
    }
    exec(blocks[0], names)
    assert type(names["model"]).__name__ == "FusedRobertaForMaskedLM"
    blocks[1] = blocks[1].replace(
        'TrainingArguments("out")',
        'TrainingArguments("out", max_steps=1, report_to="none", dataloader_pin_memory=False)',
    )
    exec(blocks[1], names)
    assert names["trainer"].state.global_step == 1


def test_a_hand_written_readme_keeps_its_text(folder):
    written = "---\nlicense: cc-by-4.0\nlicense_name: mine\nlanguage: fr\ntags:\n- mine\n---\n\n# Mine\n\nMy words.\n"
    (folder / "README.md").write_text(written)
    write_card(folder, base_model="owner/base")
    first = (folder / "README.md").read_text()
    card = ModelCard(first)
    assert card.text.startswith("\n# Mine\n\nMy words.\n\n<!-- mlp-fusion:")
    assert (
        card.data.to_dict() | {"language": "fr", "license": "cc-by-4.0", "license_name": "mine"} == card.data.to_dict()
    )
    assert card.data.tags == ["mine", "mlp-fusion"]
    assert card.data.base_model == "owner/base"
    assert card.data.base_model_relation == "finetune"
    # Once more, with words added at the end: the part on fusion is replaced in its place.
    (folder / "README.md").write_text(first + "\nMore of my words.\n")
    write_card(folder, license="mit")
    second = ModelCard((folder / "README.md").read_text())
    assert second.text == card.text + "\nMore of my words.\n"
    assert second.data.license == "mit"
    assert second.data.get("license_name") is None
    assert second.data.base_model == "owner/base"
    write_card(folder, overwrite=True, **KNOWN)
    assert "My words" not in (folder / "README.md").read_text()


def test_writing_twice_changes_nothing(folder):
    figures = [Measured("text-generation", "wikitext", "test", "loss", 2.5)]
    write_card(folder, **KNOWN, measured=figures, license_note="Of one kind.")
    first = (folder / "README.md").read_bytes(), (folder / "fusion_errors.png").read_bytes()
    write_card(folder)  # which is not told the figures and the note again
    assert first == ((folder / "README.md").read_bytes(), (folder / "fusion_errors.png").read_bytes())
    write_card(folder, measured=[replace(figures[0], value=2.25)])
    results = ModelCard((folder / "README.md").read_text()).data.eval_results
    assert [result.metric_value for result in results] == [2.25]
    assert "| 2.25 |" in (folder / "README.md").read_text()
    assert "| 2.5 |" not in (folder / "README.md").read_text()
    assert "Of one kind." in (folder / "README.md").read_text()


def test_licence_and_base_are_asked_for(folder):
    with pytest.raises(FusionConfigError, match="add --base-model"):
        write_card(folder)
    with pytest.raises(
        FusionConfigError, match=r"licence of fused is not known: add --license, .* that of owner/base"
    ):
        write_card(folder, base_model="owner/base")
    assert not (folder / "README.md").exists()
    assert not (folder / "fusion_errors.png").exists()


def test_the_licence_of_the_base(tmp_path):
    """It stands in the card of the folder that was fused."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: mixed\nlicense_link: LICENSE\n---\n")
    source = {"name_or_path": str(base), "architecture": "RobertaForMaskedLM"}
    data = ModelCard(card_files(saved(source=source), "x", base_model="owner/base").readme).data
    assert (data.license, data.license_name, data.license_link) == ("other", "mixed", "LICENSE")
    assert data.base_model == "owner/base"  # and not the path, which means nothing to others
    (base / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(FusionConfigError, match="licence"):
        card_files(saved(source=source), "x", base_model="owner/base")


def test_the_base_of_the_receipt():
    source = {"name_or_path": "FacebookAI/roberta-base"}
    data = ModelCard(card_files(saved(source=source), "x", license="mit").readme).data
    assert data.base_model == "FacebookAI/roberta-base"


EVIL = [
    "x\n---\nlicense: evil\n---\n",
    "x: [y\n",
    "| x | y |\n| --- |",
    "`x` ```\n<script>alert(1)</script>",
    "<!-- mlp-fusion: end -->",
    '"); import os; os.system("x',
    "$(touch x); `touch x`",
    "[click](https://evil.example)",
    "{{ 7 * 7 }} {% raw %}",
    "!!python/object/apply:os.system ['x']",
    "\u202e\x00\x1b[31m",
]


@pytest.mark.parametrize("evil", EVIL)
def test_names_of_others_stay_in_their_place(evil):
    model = saved(
        source={"name_or_path": evil, "architecture": evil},
        ffns=[replace(saved().report.ffns[0], name=evil, method=evil)],
        skipped=[SkippedFFN(evil, 64, evil)],
        warnings=[evil],
        versions={"hf_mlp_fusion": evil},
    )
    measured = [Measured(evil, evil, evil, evil, 1.0, command=evil)]
    card = FusionCard(evil, model, evil, {"license": evil}, license_note=evil, measured=measured, picture="p.png")
    text = card.merge_into(None)
    head, body = re.match(r"---\n(.*?)\n---\n(.*)", text, flags=re.DOTALL).groups()
    assert set(yaml.safe_load(head)) == {
        "base_model",
        "base_model_relation",
        "library_name",
        "license",
        "model-index",
        "pipeline_tag",
        "tags",
    }
    assert yaml.safe_load(head)["base_model"] == evil
    assert yaml.safe_load(head)["license"] == evil
    assert "<script" not in body
    assert "](https://evil" not in re.sub("`[^`\n]+`", "", body)  # in code it is but text
    assert "49" not in body
    assert body.count("<!--") == body.count("-->") == 6
    assert body.count("```") == 2 * 4
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", body)
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {4, 8, 7}
    (load,) = re.findall(r"```python\n(import hf_mlp_fusion.*?)```", body, flags=re.DOTALL)
    assert load.count("from_pretrained") == 2
    compile(load, "card", "exec")
    assert len(load.splitlines()) == 5
    assert card.merge_into(text) == text


def test_figures_from_a_file(tmp_path):
    path = tmp_path / "lines.jsonl"
    line = {"task": "t", "dataset": "d", "split": "s", "metric": "accuracy", "value": 1, "seeds": 5, "more": [1]}
    path.write_text(json.dumps(line) + "\n\n" + json.dumps(line | {"spread": 0.5, "command": "c"}) + "\n")
    assert read_measured(path) == [
        Measured("t", "d", "s", "accuracy", 1, seeds=5),
        Measured("t", "d", "s", "accuracy", 1, 0.5, 5, "c"),
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "line 1"),
        ("[]", "an object with task, dataset"),
        ('{"task": "t"}', "'dataset' is missing"),
        ('{"task": "t", "dataset": "d", "split": "s", "metric": "m", "value": "1"}', "value must be float"),
        ('{"task": "t", "dataset": "d", "split": "s", "metric": "m", "value": NaN}', "value is nan"),
        ("[" * 100_000, "line 1"),
        ("\xff", "UTF-8"),
    ],
)
def test_bad_figures(tmp_path, text, fault):
    path = tmp_path / "lines.jsonl"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=fault):
        read_measured(path)


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["hf-mlp-fusion", "card", str(folder), *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0, capsys.readouterr()

    code, printed = run("--license", "mit")
    assert code == 1
    assert "add --base-model" in printed.err
    figure = {"task": "fill-mask", "dataset": "d", "split": "s", "metric": "loss", "value": 2.5}
    (tmp_path / "lines.jsonl").write_text(json.dumps(figure))
    code, printed = run("--license", "mit", "--base-model", "owner/base", "--results", str(tmp_path / "lines.jsonl"))
    assert code == 0, printed.err
    card = ModelCard((folder / "README.md").read_text())
    assert card.data.eval_results[0].metric_value == 2.5
    assert (folder / "fusion_errors.png").read_bytes().startswith(b"\x89PNG")
