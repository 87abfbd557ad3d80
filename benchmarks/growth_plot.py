"""Plot how the time of a night and of its stages grows with the catalog, from the figures of `benchmarks.nights`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from benchmarks.likeness_plot import STYLE

MIN_SHARE = 0.03
"""Stages with a smaller share of the largest night are added up as `others`."""
OTHERS, OTHERS_COLOR = "others", "#c8ccd0"


def plot(nights: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the figure.

    Args:
        nights: figures of nights of synthetic catalogs, by ascending size.
        path: SVG file.
    """
    mpl.use("svg")
    plt.rcParams.update(STYLE)
    sizes = [night["items"] for night in nights]
    stages = _stages(nights)
    figure, panel = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    bottom = [0.0] * len(nights)
    positions = range(len(nights))
    for number, (name, seconds) in enumerate(stages.items()):
        per_item = [1_000 * each / size for each, size in zip(seconds, sizes, strict=True)]
        panel.bar(
            positions,
            per_item,
            0.6,
            bottom,
            label=name,
            color=OTHERS_COLOR if name == OTHERS else mpl.colormaps["tab20c"](number),
        )
        bottom = [below + each for below, each in zip(bottom, per_item, strict=True)]
    for position, night, top in zip(positions, nights, bottom, strict=True):
        panel.annotate(
            f"{night['wall_s'] / 60:.1f} min, {night['peak_mib'] / 1024:.1f} GiB",
            (position, top), (0, 3), textcoords="offset points", ha="center",
        )  # fmt: skip
    panel.set_xticks(
        list(positions),
        [f"{size:,} items\n{night['interactions']:,} interactions" for size, night in zip(sizes, nights, strict=True)],
    )
    panel.set_ylabel("ms per item")
    panel.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, reverse=True)
    figure.savefig(path, metadata={"Date": None})


def _stages(nights: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the seconds of each large stage in each night, and those of all others."""
    largest = nights[-1]
    names = [name for name, seconds in largest["seconds"].items() if seconds >= MIN_SHARE * largest["wall_s"]]
    stages = {name: [night["seconds"].get(name, 0.0) for night in nights] for name in names}
    others = [night["wall_s"] - sum(stages[name][position] for name in names) for position, night in enumerate(nights)]
    return {**stages, OTHERS: others}
