"""The site is built from the docstrings, names each public name, and what its pages show runs."""

import importlib.util
import pkgutil
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import patch

import pytest

import hf_mlp_fusion
from hf_mlp_fusion.baselines import METHODS
from hf_mlp_fusion.families import FAMILIES

DOCS = Path(__file__).parents[1] / "docs"
ROOT = DOCS.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TEXTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(DOCS.glob("*.md")),
    *sorted((ROOT / "model_cards").rglob("*.md")),
    *NOTEBOOKS,
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built without a warning."""
    spec = importlib.util.spec_from_file_location("build_docs", DOCS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("site")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.build(folder)
    return folder


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors.add(values.get("id"))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])


def test_public_names_are_on_the_front_page_and_explained_at_home(site):
    links = Page(site / "index.html").links
    for name in hf_mlp_fusion.__all__:
        home = getattr(hf_mlp_fusion, name).__module__.replace(".", "/") + ".html"
        assert f"{home}#{name}" in links
        assert name in Page(site / home).anchors
    assert {"commands.html", *(f"{path.stem}.html" for path in DOCS.glob("*.md"))} <= set(links)


def test_links_lead_somewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 80
    for path, page in pages.items():
        for link in page.links:
            if link.startswith("http"):
                continue
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target in pages, f"{path.name}: {link}"
            assert not anchor or anchor in pages[target].anchors, f"{path.name}: {link}"


@pytest.mark.parametrize(("name", "fewest"), [("design", 30), ("families", 3)])
def test_names_in_a_page_exist(site, name, fewest):
    """And pdoc has made a link of each."""
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(hf_mlp_fusion\.[\w.]+)`", text))
    assert len(names) > fewest
    page = (site / f"{name}.html").read_text(encoding="utf-8")
    for name in names:
        assert pkgutil.resolve_name(name) is not None
        assert f">{name}</a>" in page


def test_the_picture_of_the_readme_is_drawn_from_the_tables(tmp_path):
    spec = importlib.util.spec_from_file_location("draw_docs", DOCS / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.smollm2(tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 10_000


def test_the_commands_are_documented(site):
    text = (site / "commands.html").read_text(encoding="utf-8")
    for command in ("fuse", "inspect", "bench glue"):
        assert f"hf-mlp-fusion {command}" in text


@pytest.mark.parametrize(("page", "made"), [("design", {"FIRST", "ExactMatch"}), ("families", {"ernie"})])
def test_the_code_of_a_page_runs(page, made, tmp_path, monkeypatch):
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = {}
    with patch.dict(FAMILIES), patch.dict(METHODS):  # what the page registers is gone afterwards
        for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
            exec(compile(block, f"{page}.md", "exec"), names)
    assert made <= set(names)


def test_the_page_on_families_has_the_table(cli):
    code, table, _ = cli("families", "--markdown")
    assert code == 0
    assert table in (DOCS / "families.md").read_text(encoding="utf-8"), "run `hf-mlp-fusion families --markdown`"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_in_texts_exist(path):
    for name in set(re.findall(r"\bhf_mlp_fusion(?:\.[a-zA-Z_]\w*)+", path.read_text(encoding="utf-8"))):
        assert pkgutil.resolve_name(name) is not None
    for module, names in re.findall(r"from (hf_mlp_fusion[\w.]*) import ([\w, ]+)", path.read_text(encoding="utf-8")):
        for name in names.split(","):
            assert pkgutil.resolve_name(f"{module}.{name.strip()}") is not None


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_in_texts_exist(path):
    for name in set(
        re.findall(r"\b(?:tests|docs|notebooks|model_cards)/[\w/]+\.\w+", path.read_text(encoding="utf-8"))
    ):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("path", TEXTS[: -len(NOTEBOOKS)], ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_texts_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert "://" in link or (path.parent / link).exists(), link
