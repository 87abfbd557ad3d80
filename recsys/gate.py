"""What a release has to show before it takes over: each check with its value, its limit and its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recsys.evaluation import CUTS, TARGET_METRIC, metrics, ranks
from recsys.queries import Queries
from recsys.release import Release


class Check(NamedTuple):
    """One reason to promote or not."""

    name: str
    value: float
    limit: float
    """The smallest value that passes."""

    @property
    def passed(self) -> bool:
        """NaN never passes."""
        return self.value >= self.limit

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "failed"
        return f"{self.name} {self.value:.4f}, at least {self.limit:.4f}: {verdict}"


class Questions(NamedTuple):
    """Held-out interactions by item id, so that releases with other catalogues can be asked the same."""

    queries: Sequence[str]
    targets: Sequence[str]


def score(release: Release, questions: Questions) -> dict[str, float]:
    """Figures of a release on the questions; one about an item that it does not hold is a miss."""
    numbers = release.catalogue.numbers
    queries, targets = numbers(questions.queries, missing=-1), numbers(questions.targets, missing=-1)
    known = (queries >= 0) & (targets >= 0)
    rank = np.full(len(known), max(CUTS))
    rank[known] = ranks(release.index, Queries.of_items(queries[known]), targets[known])
    return metrics(rank)


def checks(
    challenger: Release, champion: Release | None, questions: Questions, *, recall_floor: float, tolerance: float
) -> list[Check]:
    """All checks of a challenger; against the champion on the same questions, both asked now.

    Without questions nothing shows that the challenger is not worse, so the champion stays.

    Args:
        challenger: the new release.
        champion: the one in service, None before the first.
        questions: today's held-out interactions.
        recall_floor: the smallest index recall.
        tolerance: the share of the champion's NDCG@20 by which the challenger may be worse.
    """
    result = [Check("index_recall", challenger.manifest.index_recall, recall_floor)]
    if champion is not None:
        result.append(Check("held_out_questions", len(questions.queries), 1))
    if champion is not None and len(questions.queries):
        limit = score(champion, questions)[TARGET_METRIC] * (1 - tolerance)
        result.append(Check(TARGET_METRIC, score(challenger, questions)[TARGET_METRIC], limit))
    return result
