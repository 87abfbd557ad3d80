"""Plot likeness against the next item, from results of `benchmarks.likeness`.

    python -m benchmarks.likeness_plot --svg OUT NAME=FILE [NAME=FILE …]

One panel per result: a point for each baseline and each tower, with the agreement with other users and the NDCG@20 of
the next item. Up and to the right is better.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

TOWER, BASELINE = "#1d6f93", "#8a949c"
COLUMNS, PANEL_INCHES = 2, (5.2, 3.4)
LABEL_GAP = 0.7
"""Smallest distance of two labels, as a share of the distance of evenly spaced labels."""
STYLE = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "recsys",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
"""Settings of matplotlib for all plots of the documentation."""
LABELS = {
    "co_occurrence": "co-occurrence",
    "item_knn": "ItemKNN",
    "windowed_item_knn": "windowed ItemKNN",
    "ease": "EASE",
}


def plot(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write the figure.

    Args:
        results: title of a panel -> content of a JSON file of `benchmarks.likeness`.
        path: SVG file.
    """
    mpl.use("svg")
    plt.rcParams.update(STYLE)
    rows = -(-len(results) // COLUMNS)
    width, height = PANEL_INCHES
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(COLUMNS * width, rows * height), layout="constrained", squeeze=False
    )
    for panel, (title, result) in zip(axes.flat, results.items(), strict=False):
        _draw(panel, title, result["models"])
    for panel in axes.flat[len(results) :]:
        panel.set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def _draw(panel: Axes, title: str, models: Mapping[str, Mapping[str, Any]]) -> None:
    points = sorted((figures["agreement_at_10"], name) for name, figures in models.items())
    for (y, name), label_y in zip(points, _spread([y for y, _ in points]), strict=True):
        is_tower = name.startswith("tower, ")
        color = TOWER if is_tower else BASELINE
        x = models[name]["next_item_ndcg_at_20"]
        low, high = models[name]["intervals"]["agreement_at_10"]
        panel.errorbar(x, y, yerr=[[y - low], [high - y]], fmt="o", color=color, markersize=5, elinewidth=1)
        panel.annotate(
            LABELS.get(name, name),
            (x, y),
            (1.04, label_y),
            textcoords=panel.get_yaxis_transform(),
            color=color,
            fontsize=8,
            va="center",
            weight="bold" if is_tower else "normal",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.4, "relpos": (0, 0.5), "shrinkB": 4},
        )
    panel.set_title(title, loc="left", weight="bold")
    panel.set_xlabel("NDCG@20 of the next item")
    panel.set_ylabel("agreement with other users, @10")


def _spread(values: Sequence[float]) -> list[float]:
    """Return positions of labels, bottom to top, near these ascending values but not too close to each other."""
    gap = (values[-1] - values[0]) / (len(values) - 1) * LABEL_GAP
    positions = list(values)
    for number in range(len(values) - 2, -1, -1):  # from the top, where most models are
        positions[number] = min(positions[number], positions[number + 1] - gap)
    return positions


def main(argv: Sequence[str] | None = None) -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--svg", type=Path, required=True, metavar="OUT", help="file to write")
    parser.add_argument("results", nargs="+", metavar="NAME=FILE", help="title of a panel and its JSON file")
    arguments = parser.parse_args(argv)
    named = [each.partition("=")[::2] for each in arguments.results]
    plot({name: json.loads(Path(file).read_text(encoding="utf-8")) for name, file in named}, arguments.svg)


if __name__ == "__main__":
    main()
