"""Plots of a run: coordinates for the run report, and SVG images for MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from pipelines.reports import html
from recsys.evaluation.likeness import AGREEMENT
from recsys.evaluation.metrics import STRATA, TARGET_METRIC

HEIGHT, SQUARE = 240, 640
"""Height of a plot, and of the map, which is square. All plots are 640 units wide."""
CURVES = {"loss": "Training loss", f"validation_{TARGET_METRIC}": "NDCG@20 on the validation targets"}
"""Metrics of each pass that are plotted -> title of the plot."""


def coordinates(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the coordinates of every plot, in percent of the width and height of the plot."""
    training, index, quality, likeness = (report[part] for part in ("training", "index", "quality", "likeness"))
    plots: dict[str, Any] = {}
    for name in CURVES:
        passes = enumerate(training["curve"] if training else [], 1)
        plots[name] = _line([(number, figures[name]) for number, figures in passes if name in figures])
    trials = index["curve"] if index else []
    plots["recall"] = _line(
        [(np.log2(search_k), recall) for search_k, recall in trials],
        [f"search_k {search_k}: {recall:.4f}" for search_k, recall in trials],
        index["target"] if index else None,
    )
    plots["quality"] = {kind: _ranges(models, TARGET_METRIC) for kind, models in quality.items()} if quality else {}
    plots["agreement"] = _ranges(likeness["models"], AGREEMENT) if likeness else []
    return plots


def draw(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the plots for which the run report has data, as SVG by name."""
    plots = coordinates(report)
    images = {}
    for name, title in CURVES.items():
        if curve := plots[name]:
            images[name] = _curve(title, curve, "pass 1", f"pass {len(curve['points'])}")
    if curve := plots["recall"]:
        index = report["index"]
        title = f"Recall@{index['k']} by search_k, log scale; the dashed line is the target"
        images["recall"] = _curve(title, curve, f"search_k {index['curve'][0][0]}", str(index["curve"][-1][0]))
    if similarity := report["similarity"]:
        edges = similarity["edges"]
        names = [f"{low:.2f} to {high:.2f}" for low, high in pairwise(edges)]
        images["similarity"] = _bars(
            "Similarity of items",
            names,
            {"before": similarity["any"], "now": similarity["nearest"]},
            {"before": "random pairs of items", "now": "ten nearest neighbors"},
            [(0, f"{edges[0]:g}"), (100, f"{edges[-1]:g}")],
        )
    if exposure := report["exposure"]:
        names = list(exposure["items"])
        images["exposure"] = _bars(
            "Popularity against exposure",
            names,
            {
                name: list(exposure[field].values())
                for name, field in (("before", "interactions"), ("now", "neighbors"))
            },
            {"before": "share of interactions", "now": "share of ten nearest neighbors"},
            [(100 * (number + 0.5) / len(names), name) for number, name in enumerate(names)],
        )
    if item_map := report["map"]:
        dots = [(item["stratum"], item["x"], 100 - item["y"], item["title"]) for item in item_map["items"]]
        title = f"{len(dots)} items by the first two principal components of their embeddings"
        images["map"] = _svg(title, dots=dots, key={name: name for name in STRATA}, height=SQUARE)
    return images


def _curve(title: str, curve: Mapping[str, Any], first: str, last: str) -> str:
    points = curve["points"]
    return _svg(
        title,
        line=points,
        dots=[("now", *point) for point in points],
        guide=curve["guide"],
        x_labels=[(0, first), (100, last)],
        y_labels=[(4, f"{curve['low']:.3g}"), (96, f"{curve['high']:.3g}")],
    )


def _bars(
    title: str,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    key: Mapping[str, str],
    x_labels: Sequence[tuple[float, str]],
) -> str:
    """Draw grouped bars of shares: one group per name, and in each group one bar per series."""
    tallest = max(max(shares) for shares in series.values()) or 1.0
    group_width = 100 / len(names)
    width = 0.8 * group_width / len(series)
    bars = [
        (
            series_name,
            group_width * (group + 0.1) + width * rank,
            100 * share / tallest,
            width,
            f"{name}, {key[series_name]}: {share:.1%}",
        )
        for rank, (series_name, shares) in enumerate(series.items())
        for group, (name, share) in enumerate(zip(names, shares, strict=True))
    ]
    return _svg(title, bars=bars, key=key, x_labels=x_labels, y_labels=[(0, "0%"), (100, f"{tallest:.0%}")])


def _svg(title: str, **parts: Any) -> str:
    """Render `plot.svg` with the given parts; parts that are not given are empty."""
    empty: dict[str, Any] = {
        "line": (),
        "bars": (),
        "dots": (),
        "guide": None,
        "key": {},
        "x_labels": (),
        "y_labels": (),
    }
    return html.render("plot.svg", **{**empty, "height": HEIGHT, "title": title, **parts})


def _line(points: Sequence[tuple[float, float]], labels: list[str] | None = None, guide: float | None = None) -> Any:
    """Return the coordinates of a line with labeled points, or None if there are fewer than two points.

    Args:
        points: x and y of each point, by ascending x.
        labels: label of each point; x and y by default.
        guide: y of a horizontal reference line.
    """
    if len(points) < 2:  # noqa: PLR2004
        return None
    x, y = np.array(points, float).T
    low, high = (float(bound) for bound in (min(y.min(), guide or np.inf), max(y.max(), guide or -np.inf)))
    scale = (high - low) or 1.0

    def to_percent(value: Any) -> Any:
        return np.round(4 + 92 * (value - low) / scale, 2)

    plotted = np.stack([np.round(100 * (x - x[0]) / (x[-1] - x[0]), 2), to_percent(y)], axis=1)
    labels = labels or [f"{point_x:g}: {point_y:.4f}" for point_x, point_y in points]
    return {
        "points": [(*point, label) for point, label in zip(plotted.tolist(), labels, strict=True)],
        "low": low,
        "high": high,
        "guide": None if guide is None else float(to_percent(guide)),
    }


def _ranges(models: Mapping[str, Any], metric: str) -> list[dict[str, Any]]:
    """Return a metric of each model that has it, with its interval; `scale` converts both to percent of the axis."""
    models = {name: figures for name, figures in models.items() if metric in figures}
    upper_bound = max((figures["intervals"][metric][1] for figures in models.values()), default=0.0) or 1.0
    return [
        {
            "name": name,
            "value": figures[metric],
            "low": figures["intervals"][metric][0],
            "high": figures["intervals"][metric][1],
            "scale": 100 / upper_bound,
        }
        for name, figures in models.items()
    ]
