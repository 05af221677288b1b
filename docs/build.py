"""Builds the site: a page for each module from its docstrings, one for the commands, and the texts in this folder.

Usage: python docs/build.py [FOLDER], `site` if not given.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType

import pdoc.doc
import pdoc.render
import typer
import typer.main
from typer.cli import get_docs_for_click

import hf_mlp_fusion
from hf_mlp_fusion.cli import app

HERE = Path(__file__).parent
ROOT = hf_mlp_fusion.__name__
WITHOUT_PAGE = (f"{ROOT}.cli", f"{ROOT}.hub.modeling_mlp_fusion")  # commands have their own; the stub only forwards


def build(folder: Path) -> None:
    """Writes the site.

    Args:
        folder: Where to; files there are replaced.
    """
    found = pkgutil.walk_packages(hf_mlp_fusion.__path__, f"{ROOT}.")
    names = [module.name for module in found if not module.name.startswith(WITHOUT_PAGE)]
    modules = {name: importlib.import_module(name) for name in names}
    for module in modules.values():  # pdoc wants names to be there that are imported when used
        vars(module).update({name: getattr(module, name) for name in getattr(module, "__all__", ())})
    pages = {name: pdoc.doc.Module(module) for name, module in modules.items()}
    texts = {path.stem: linked(path.read_text(encoding="utf-8")) for path in sorted(HERE.glob("*.md"))}
    texts["commands"] = command_page()
    texts["index"] = front_page(pages, texts)
    pages |= {name: text_page(name, text) for name, text in texts.items()}
    pdoc.render.configure(
        docformat="google",
        show_source=False,
        footer_text=f"{ROOT} {hf_mlp_fusion.__version__}",
        template_directory=HERE / "templates",
    )
    for name, page in pages.items():
        file = folder / address(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(pdoc.render.html_module(page, pages), encoding="utf-8")
    (folder / "search.js").write_text(pdoc.render.search_index(pages), encoding="utf-8")


def address(name: str) -> str:
    """The file of a page."""
    return f"{name.replace('.', '/')}.html"


def linked(text: str) -> str:
    """A text whose links to other texts here lead to their pages, which in the repository they need not."""
    return re.sub(r"\]\((\w+)\.md(#[\w-]+)?\)", r"](\1.html\2)", text)


def text_page(name: str, text: str) -> pdoc.doc.Module:
    """A page of Markdown: to pdoc, a module with nothing but a docstring."""
    module = ModuleType(name, text)
    module.__docformat__ = "markdown"  # type: ignore[attr-defined]
    return pdoc.doc.Module(module)


def front_page(pages: dict[str, pdoc.doc.Module], texts: dict[str, str]) -> str:
    """What the package is, the pages of text as the README has them, where public names are explained, and modules."""
    readme = (HERE.parent / "README.md").read_text(encoding="utf-8").split("## Documentation")[1]
    order = sorted(texts, key=lambda name: (readme.find(f"](docs/{name}.md)") % len(readme), name))  # -1: at the end
    headings = [f"- [{texts[name].splitlines()[0].lstrip('# ')}]({address(name)})" for name in order]
    homes = {name: getattr(hf_mlp_fusion, name) for name in hf_mlp_fusion.__all__}
    names = [
        f"- [`{name}`]({address(home.__module__)}#{name}): {first_sentence(home)}" for name, home in homes.items()
    ]
    modules = [
        f"- [`{name.removeprefix(f'{ROOT}.')}`]({address(name)}): {first_sentence(page.obj)}"
        for name, page in sorted(pages.items())
        if name.count(".") == 1
    ]
    return "\n".join(
        [
            f"# {ROOT}\n\n{hf_mlp_fusion.__doc__}",
            *headings,
            f"\n## Names\n\nWhat `{ROOT}` itself has, and where it is explained.\n",
            *names,
            f"\n## Modules\n\nThe modules of `{ROOT}`.\n",
            *modules,
        ]
    )


def first_sentence(thing: object) -> str:
    """The first sentence of a docstring."""
    paragraph = " ".join((thing.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]


def command_page() -> str:
    """What the `--help` of each command says."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(
        obj=command, ctx=typer.Context(command), name="hf-mlp-fusion", title="The command `hf-mlp-fusion`"
    )
    return re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n", "", text)  # cut short by typer, and the page itself lists them


if __name__ == "__main__":
    build(Path(*sys.argv[1:2] or ["site"]))
