"""The targets of the figures that the benchmarks measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

Figures = dict[str, Any]
"""Content of the JSON file of a benchmark."""

PUBLISHED = {"beauty": (0.1008, 0.0611), "toys": (0.0970, 0.0580), "lastfm": (0.0807, None)}
"""Data set -> the best published HR@10 and NDCG@10 from histories that we know of; see `docs/benchmarks.md`."""


class Target(NamedTuple):
    """A bound of one figure."""

    text: str
    """What is measured, with its unit."""
    benchmark: str
    """Name of the benchmark in `benchmarks.__main__.COMMANDS`."""
    read: Callable[[Figures], float]
    """Returns the figure."""
    bound: float
    at_least: bool = False
    """Whether the bound is the smallest value; otherwise the largest."""

    def is_reached(self, value: float) -> bool:
        """Return whether a value is on the right side of the bound."""
        return value >= self.bound if self.at_least else value <= self.bound


TARGETS = (
    Target("night on MovieLens 100k, s", "nights", lambda f: f["movielens-100k"]["wall_s"], 25),
    Target("night on Amazon Beauty, s", "nights", lambda f: f["beauty"]["wall_s"], 60),
    Target("evaluate, share of this night", "nights", lambda f: f["evaluate_share"], 0.25),
    Target("system time of train, share of its CPU time", "nights", lambda f: f["system_share"], 0.1),
    Target("shop of three sets to Beauty, time per interaction", "nights", lambda f: f["ratio_per_interaction"], 1.1),
    Target("largest synthetic catalog to the smallest, time per item", "nights", lambda f: _last(f)["growth"], 1.5),
    Target("night of the largest synthetic catalog, s", "nights", lambda f: _last(f)["wall_s"], 2_400),
    Target("its peak memory, MiB", "nights", lambda f: _last(f)["peak_mib"], 8_192),
    Target("training step, a million items to 10,000", "training", lambda f: f["steps"]["ratio"], 1.3),
    Target("memory of training, ten times the pairs", "training", lambda f: f["memory"]["ratio"], 1.3),
    Target("95% of the validation score, to item2vec", "training", lambda f: f["comparison"]["ratio"]["both"], 1),
    Target("new queries, to an empty endpoint", "service", lambda f: f["throughput"]["new_ratio"], 0.7, at_least=True),
    Target("repeated queries, to it", "service", lambda f: f["throughput"]["ratio"], 0.85, at_least=True),
    Target("p99 of new queries at half load, ms", "service", lambda f: f["throughput"]["new_p99_ms"], 5),
    Target("p99 of repeated queries at half load, ms", "service", lambda f: f["throughput"]["p99_ms"], 5),
    Target("memory of a worker beyond mapped files, bytes an item", "memory", lambda f: f["queried"], 200),
)


def _last(figures: Figures) -> Figures:
    """Return the last synthetic night, with its growth."""
    return {**figures["synthetic"]["nights"][-1], "growth": figures["synthetic"]["growth"][-1]}


def targets_of(results: Mapping[str, Figures]) -> Iterator[tuple[Target, float]]:
    """Yield each target whose benchmark has a result, and its value.

    Args:
        results: name of a benchmark -> content of its JSON file.
    """
    targets = [*TARGETS, *(target for name in results for target in _targets_by_name(name, results[name]))]
    for target in targets:
        if target.benchmark in results:
            try:
                yield target, target.read(results[target.benchmark])
            except (KeyError, IndexError):  # a part that was skipped, such as the load without a load generator
                continue


def _targets_by_name(name: str, figures: Figures) -> list[Target]:
    """Return the targets of a benchmark of a data set, or of one with rows of ratios."""
    kind, _, data_set = name.partition("-")
    if "rows" in figures:
        return [
            Target(row["name"], name, lambda _, row=row: row["ratio"], row["limit"])  # type: ignore[misc]
            for row in figures["rows"]
            if row["limit"] is not None
        ]
    if kind == "new_items":
        return [
            Target(f"new items of {data_set}, to content", name, lambda f: f["ratios"]["content"], 2.2, at_least=True),
            Target(
                f"new items of {data_set}, to content and popularity",
                name,
                lambda f: f["ratios"]["content_popularity"],
                1.5,
                at_least=True,
            ),
        ]
    if kind == "quality":
        hit_rate, ndcg = PUBLISHED[data_set]
        targets = [
            Target(
                f"last-item NDCG@20 of {data_set}, to the best baseline", name, _ratio_to_baselines, 1.15, at_least=True
            ),
            Target(f"history HR@10 of {data_set}", name, lambda f: _history(f)["hr_at_10"], hit_rate, at_least=True),
        ]
        if ndcg is not None:
            targets.append(
                Target(f"history NDCG@10 of {data_set}", name, lambda f: _history(f)["ndcg_at_10"], ndcg, at_least=True)
            )
        return targets
    return []


def _history(figures: Figures) -> Figures:
    metrics: Figures = figures["model"]["test"]
    return metrics


def _ratio_to_baselines(figures: Figures) -> float:
    results = figures["last_item"]
    best: float = max(baseline["test"]["ndcg_at_20"] for baseline in results["baselines"].values())
    ratio: float = results["model"]["test"]["ndcg_at_20"] / best
    return ratio
