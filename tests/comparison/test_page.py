"""The report: table, pictures, and the page in a real browser."""

import html.parser
import json
import math
import re
import shutil
import subprocess

import matplotlib.image
import pytest
import torch
from typer.testing import CliRunner

from hf_mlp_fusion.cli import app
from hf_mlp_fusion.comparison.results import add_row, write_kernel
from hf_mlp_fusion.comparison.row import Costs, Row
from hf_mlp_fusion.comparison.table import columns
from hf_mlp_fusion.comparison.write import write_report
from hf_mlp_fusion.errors import DataError
from hf_mlp_fusion.measure import NTK

NAMES = [f"encoder.layer.{number}" for number in range(4)]
ABOUT = {
    "model": "someone/<a model>",
    "class": "RobertaForMaskedLM",
    "fused": 4,
    "data": "texts.txt",
    "samples": 6,
    "device": "a CPU",
    "threads": 2,
    "versions": {"torch": "2"},
    "recipe": {"width": 0.25, "layers": "all", "targets": "auto", "clustering": "ward", "seed": 0},
}


def row(method, **values):
    defaults = {
        "parameters": 1_234_567,
        "ffn_parameters": 1_000_000,
        "bytes": 4_938_268,
        "forward": Costs(0.01, 0.001, 10**9, 10**7, 1.5),
        "training": Costs(0.03, 0.002, 3 * 10**9, None, None),
    }
    return Row(f"key-{method}", "one", ABOUT, method, **(defaults | values))


@pytest.fixture
def folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    kernel = {name: torch.rand(6, 6, generator=generator, dtype=torch.float64) for name in NAMES}
    errors = {"output_errors": dict.fromkeys(NAMES, 0.4), "ntk_errors": dict.fromkeys(NAMES, 0.03)}
    means = {"output_error": 0.4, "hidden_error": 0.6, "ntk_error": 0.0371, "ntk_cosine": 0.99, "ntk_size": 0.98}
    rows = [
        row("original"),
        row("fusion", seconds=1.5, clusters={name: [9, 4, 2, 1] for name in NAMES}, **errors, **means),
        row("svd", seconds=2.5, **errors, **means),
        Row("key-layer_drop", "one", ABOUT, "layer_drop", refused="it cannot <do> this"),
    ]
    for item in rows:
        add_row(tmp_path, item)
        if item.refused is None:
            write_kernel(tmp_path, item.key, NTK("adam", kernel))
    return tmp_path


def test_report_writes_table_pictures_and_page(folder):
    rows = write_report(folder, "hf-mlp-fusion compare a-model")
    assert [item.method for item in rows] == ["original", "fusion", "svd", "layer_drop"]
    text = (folder / "comparison.md").read_text()
    assert text.startswith("```\nhf-mlp-fusion compare a-model\n```")
    assert (
        "| fusion | 1,234,567 | 0.400 | 0.600 | 0.037 | 0.990 | 0.980 | 1.5 | 10 ± 1 | 1.50 × | 30 ± 2 | 1.0 |" in text
    )
    assert "every second layer was refused: it cannot <do> this" in text
    assert len(json.loads((folder / "comparison.json").read_text())) == 4
    names = {path.name for path in (folder / "pictures").iterdir()}
    assert names == {"output_error.png", "ntk_error.png", "ntk.png", "clusters.png", "costs.png"}
    for name in names:
        pixels = matplotlib.image.imread(folder / "pictures" / name)
        assert pixels.std() > 0.01, f"{name} is blank"


def test_a_ratio_stands_beside_the_two_times_that_it_is_of():
    sure = Costs(0.01, 0.001, 10**9, None, 1.5, 0.015, 0.002)
    unsure = Costs(0.0142, 0.001, 10**9, None, 0.015 / 0.0142, 0.015, 0.002)
    shown = columns([row("original"), row("fusion", forward=sure, training=unsure)])
    cells = {header: get(row("fusion", forward=sure, training=unsure)) for header, get in shown.items()}
    assert cells["forward, ms"] == "10 ± 1 (of 15)"
    assert cells["forward, faster"] == "1.50 ×"
    assert cells["step, ms"] == "14 ± 1 (of 15)"
    assert cells["step, faster"] == "1.06 ×, within the spread"


def test_pictures_that_are_younger_than_the_rows_are_not_drawn_again(folder):
    write_report(folder)
    times = {path: path.stat().st_mtime_ns for path in (folder / "pictures").iterdir()}
    (folder / "pictures" / "costs.png").unlink()
    write_report(folder)
    again = {path: path.stat().st_mtime_ns for path in (folder / "pictures").iterdir()}
    assert again.keys() == times.keys()
    assert [path.name for path in times if again[path] != times[path]] == ["costs.png"]
    add_row(folder, row("svd", seconds=2.0, output_errors=dict.fromkeys(NAMES, 0.3)))
    write_report(folder)
    assert all(path.stat().st_mtime_ns > again[path] for path in again if path.name != "ntk_error.png")


def test_report_alone_keeps_the_command(folder):
    write_report(folder, "the command")
    write_report(folder)
    assert "the command" in (folder / "comparison.md").read_text()


def test_the_page_stands_alone(folder):
    write_report(folder, "the command")
    page = (folder / "index.html").read_text()
    assert "someone/&lt;a model&gt;" in page
    assert "<do>" not in page
    found = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append(tag)
            for name, value in attrs:
                if name in ("src", "href", "srcset", "data", "action"):
                    assert value.startswith("data:image/png;base64,")
                if tag == "img" and name == "alt":
                    assert value

    Parser().feed(page)
    assert found.count("img") == 5
    assert not {"script", "link", "iframe", "object"} & set(found)
    assert not re.search(r"url\(|@import|https?://", page)


def test_a_folder_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="no finished row"):
        write_report(tmp_path)


PROBE = """<script>
addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body *")].filter(e => !e.closest(".wide"))
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName);
  const images = [...document.images].map(i => i.complete && i.naturalWidth > 0);
  document.title = JSON.stringify({width: innerWidth, page: document.documentElement.scrollWidth, wide, images,
    size: getComputedStyle(document.body).fontSize});
});
</script></body>"""


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_phones_and_desktops(folder, tmp_path, width):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium here: `apt-get install chromium`, then the page is tested in a browser")
    write_report(folder, "hf-mlp-fusion compare " + "a-rather-long-argument " * 8)
    page = (folder / "index.html").read_text()
    # The page itself allows no script; the probe needs one, so its copy goes without the policy.
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("</body>", PROBE)
    # Chromium's windows are never narrower than 500 pixels: the phone is a frame in one.
    (tmp_path / "page.html").write_text(page)
    frame = f"""<iframe id="f" src="page.html" style="width:{width}px;height:900px;border:0"></iframe>
    <script>onload = () => setTimeout(() => document.title = f.contentDocument.title, 500)</script>"""
    (tmp_path / "frame.html").write_text(frame)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*command, (tmp_path / "frame.html").as_uri()], capture_output=True, text=True, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stdout[-500:]
    seen = json.loads(title[1].replace("&quot;", '"'))
    assert seen["width"] == width
    assert seen["page"] <= width, f"the page scrolls sideways: {seen}"
    assert seen["wide"] == []
    assert seen["images"] == [True] * 5
    assert float(seen["size"].removesuffix("px")) >= 15


def test_the_verbs(folder, tmp_path, monkeypatch):
    runner = CliRunner()
    result = runner.invoke(app, ["report", str(folder)])
    assert result.exit_code == 0, result.output
    assert "fusion" in result.output
    assert (folder / "index.html").is_file()
    printed = json.loads(runner.invoke(app, ["report", str(folder), "--json"]).stdout)
    assert [row["method"] for row in printed] == [row.method for row in write_report(folder)]
    result = runner.invoke(app, ["report", str(tmp_path / "none")])
    assert isinstance(result.exception, DataError)
    result = runner.invoke(app, ["compare", "a-model"])
    assert isinstance(result.exception, DataError)
    assert "--texts FILE or --dataset NAME" in str(result.exception)


@pytest.mark.every
def test_compare_from_the_command_line(tmp_path):
    from conftest import tiny_model
    from tiny_text import tiny_texts, tiny_tokenizer

    model, texts, out = tmp_path / "model", tmp_path / "texts.txt", tmp_path / "out"
    tiny_model("gpt2").save_pretrained(model)
    tiny_tokenizer("gpt2").save_pretrained(model)
    texts.write_text("\n".join(tiny_texts(40)))
    arguments = ["compare", str(model), "--texts", str(texts), "--out", str(out), "--width", "16", "--samples", "4"]
    result = CliRunner().invoke(app, [*arguments, "--methods", "fusion,svd", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [item["method"] for item in rows] == ["original", "fusion", "svd"]
    assert not math.isnan(rows[1]["ntk_error"])
    assert {path.name for path in out.iterdir()} >= {"results.jsonl", "comparison.md", "index.html", "pictures"}
