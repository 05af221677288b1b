"""Draws the pictures of the README from the tables of the pages here, which commands have printed.

Usage: python docs/draw.py
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
PARAMETERS_LEFT = (85, 70, 56)  # percent, at widths of 0.75, 0.5 and 0.25
RIVALS = {"COMPACT (FFNs)": "COMPACT", "Wanda, structured": "Wanda", "FLAP": "FLAP", "NIRVANA (FFNs)": "NIRVANA"}


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """The cells of the first table below a heading, by the first of each row."""
    text = (HERE / f"{page}.md").read_text(encoding="utf-8").split(f"## {heading}\n")[1]
    table = re.split(r"\n(?!\|)", text[text.index("| ---") :])[0]
    lines = [
        [re.sub(r"[*`]", "", cell).strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[1:]
    ]
    return {name: cells for name, *cells in lines}


def smollm2(path: Path) -> None:
    """Perplexity of SmolLM2 by what is left of its parameters: fused, healed, and by rivals that choose units.

    Args:
        path: Where to.
    """
    shot = rows("quality", "In one shot, against rivals")
    healed = rows("quality", "Use this")
    lines = {"fused and healed for 400 steps": [float(cells[2].split(" ± ")[0]) for cells in healed.values()]}
    lines["fused, one shot"] = [float(cell) for cell in shot["fusion, calibrated, widths searched for (auto:)"]]
    lines |= {name: [float(cell) for cell in shot[row]] for row, name in RIVALS.items()}
    figure, axes = pyplot.subplots(figsize=(7.2, 3.6), layout="constrained")
    for number, (name, values) in enumerate(lines.items()):
        style = {"linewidth": 2.4, "marker": "o"} if number < 2 else {"linewidth": 1.2, "marker": ".", "alpha": 0.8}
        axes.plot(PARAMETERS_LEFT, values, label=name, **style)
    axes.set(yscale="log", xlabel="parameters left, %", ylabel="perplexity, times the unfused", xlim=(87, 54))
    axes.set_yticks([1, 2, 5, 10, 20, 50, 100], labels=["1", "2", "5", "10", "20", "50", "100"])
    axes.set_title("SmolLM2-135M, all 30 FFNs, held-out text")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    (HERE / "pictures").mkdir(exist_ok=True)
    smollm2(HERE / "pictures" / "smollm2.png")
