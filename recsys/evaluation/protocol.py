"""How releases and baselines are evaluated: the values that are tried and the limits of what is computed.

These are not settings: changing one changes what a figure means, and figures have to stay comparable between runs.
"""

from __future__ import annotations

from typing import NamedTuple


class EvaluationProtocol(NamedTuple):
    """One way to evaluate."""

    recencies: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
    """Recencies tried for history queries, in (0, 1]; the best in validation is used. Below .2 the last item alone
    counts; the best ones measured lie between .2 and .7."""
    settings_queries: int = 2_000
    """Validation queries that select a recency or the settings of a baseline: all variants are measured on the same
    ones, and differ little around the best one."""
    history_items: int = 50
    """Number of recent items of a user that a history query weights. With a recency of .9, older items weigh less than
    a hundredth."""
    resamples: int = 1_000
    """Bootstrap samples behind each interval: the bounds of a 95% interval are then good to some 5% of its width."""
    shrinkages: tuple[float, ...] = (0.0, 10.0, 50.0, 100.0, 200.0)
    """Values tried for the ItemKNN baselines (Bell and Koren, 2007)."""
    windows: tuple[tuple[int, float], ...] = ((10, 0.5), (20, 0.5))
    """Windows and decays tried for the windowed ItemKNN baseline, beside those of `prepare`."""
    windows_max_interactions: int = 1_000_000
    """Above this number of interactions those windows are not counted, because they are counted in memory."""
    ease_penalties: tuple[float, ...] = (100.0, 300.0, 1_000.0)
    """Values tried for the EASE baseline (Steck, 2019)."""
    ease_max_items: int = 5_000
    """Above this number of items EASE is left out: it inverts a matrix of items by items."""


PROTOCOL = EvaluationProtocol()
"""The protocol of every run."""
