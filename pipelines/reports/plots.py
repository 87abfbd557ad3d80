"""Plots of a run: coordinates for the run report, and SVG images for MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from pipelines.reports import html
from recsys.evaluation.metrics import STRATA, TARGET_METRIC

HEIGHT, SQUARE = 240, 640
"""Height of a plot, and of the square map. Plots are 640 units wide."""
CURVES = {"loss": "Training loss", f"validation_{TARGET_METRIC}": "NDCG@20 on the validation target"}
"""Plotted metrics of each pass, and their titles."""


def coordinates(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the coordinates of every plot, in percent of its size."""
    training, indexed, quality = report["training"], report["index"], report["quality"]
    plots: dict[str, Any] = {}
    for name in CURVES:
        curve = enumerate(training["curve"] if training else [], 1)
        plots[name] = _line([(number, figures[name]) for number, figures in curve if name in figures])
    trials = indexed["curve"] if indexed else []
    plots["recall"] = _line(
        [(np.log2(search_k), recall) for search_k, recall in trials],
        [f"search_k {search_k}: {recall:.4f}" for search_k, recall in trials],
        indexed["target"] if indexed else None,
    )
    plots["quality"] = {kind: _ranges(models) for kind, models in quality.items()} if quality else {}
    return plots


def draw(report: Mapping[str, Any]) -> dict[str, str]:
    """Return name -> SVG of the plots that the run report has data for."""
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
        across=[(0, first), (100, last)],
        up=[(4, f"{curve['low']:.3g}"), (96, f"{curve['high']:.3g}")],
    )


def _bars(
    title: str,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    key: Mapping[str, str],
    across: Sequence[tuple[float, str]],
) -> str:
    """Draw grouped bars of shares, one group for each name."""
    tallest = max(max(shares) for shares in series.values()) or 1.0
    step = 100 / len(names)
    wide = 0.8 * step / len(series)
    bars = [
        (of, step * (number + 0.1) + wide * turn, 100 * share / tallest, wide, f"{name}, {key[of]}: {share:.1%}")
        for turn, (of, shares) in enumerate(series.items())
        for number, (name, share) in enumerate(zip(names, shares, strict=True))
    ]
    return _svg(title, bars=bars, key=key, across=across, up=[(0, "0%"), (100, f"{tallest:.0%}")])


def _svg(title: str, **parts: Any) -> str:
    empty: dict[str, Any] = {"line": (), "bars": (), "dots": (), "guide": None, "key": {}, "across": (), "up": ()}
    return html.render("plot.svg", **{**empty, "height": HEIGHT, "title": title, **parts})


def _line(points: Sequence[tuple[float, float]], shown: list[str] | None = None, guide: float | None = None) -> Any:
    if len(points) < 2:  # noqa: PLR2004 - no line
        return None
    across, up = np.array(points, float).T
    low, high = (float(bound) for bound in (min(up.min(), guide or np.inf), max(up.max(), guide or -np.inf)))
    scale = (high - low) or 1.0

    def height(value: Any) -> Any:
        return np.round(4 + 92 * (value - low) / scale, 2)

    spots = np.stack([np.round(100 * (across - across[0]) / (across[-1] - across[0]), 2), height(up)], axis=1)
    names = shown or [f"{x:g}: {y:.4f}" for x, y in points]
    return {
        "points": [(*point, name) for point, name in zip(spots.tolist(), names, strict=True)],
        "low": low,
        "high": high,
        "guide": None if guide is None else float(height(guide)),
    }


def _ranges(models: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return NDCG@20 of each model with its interval, on a common scale from 0."""
    widest = max(figures["intervals"][TARGET_METRIC][1] for figures in models.values()) or 1.0
    return [
        {
            "name": name,
            "value": figures[TARGET_METRIC],
            "low": figures["intervals"][TARGET_METRIC][0],
            "high": figures["intervals"][TARGET_METRIC][1],
            "scale": 100 / widest,
        }
        for name, figures in models.items()
    ]
