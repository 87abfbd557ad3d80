"""Quality of the embeddings after a pass, which decides when training stops: retrieval of targets, or likeness."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recsys.data.splits import Holdout
from recsys.evaluation.likeness import AGREEMENT, MAX_ITEMS, SEARCHED, Evidence, agreement, means
from recsys.evaluation.metrics import (
    VALIDATION_SCORE,
    VALIDATION_TOLERANCE,
    choose_recency,
    ranking_metrics,
    target_ranks,
    validation_score,
)
from recsys.evaluation.protocol import PROTOCOL, EvaluationProtocol
from recsys.index.distances import Distance
from recsys.index.embeddings import Vectors
from recsys.index.exact import ExactIndex
from recsys.index.queries import Queries, default_recency


class PassValidation(Protocol):
    """Evaluates the embeddings after a pass."""

    def evaluate(self, embeddings: Vectors) -> dict[str, float]:
        """Return the figures of a pass, among them `validation_score`, which is maximized.

        Args:
            embeddings: of the catalog, float32 [num_items, d].
        """
        ...


@dataclass(frozen=True)
class Validation:
    """Retrieval of the validation targets by exact search, from the last item and from the history of a user.

    A tower serves both kinds of queries, so the score of a pass is the mean of the two NDCG@20.
    """

    holdout: Holdout
    distance: Distance
    retrievable: NDArray[np.bool_] | None = None
    """Items that may be retrieved, bool [num_items]; None stands for all items."""
    recency: float = default_recency(PROTOCOL.recencies)
    """Weight of one step back in a history query, in (0, 1]; the same for all passes that are compared."""
    protocol: EvaluationProtocol = PROTOCOL
    """Recencies and the length of a history."""

    def with_best_recency(self, embeddings: Vectors) -> Validation:
        """Return the same with the recency that is best for the embeddings, as a release uses it."""
        return replace(self, recency=choose_recency(self._index(embeddings), self.holdout, self.protocol)[0])

    def evaluate(self, embeddings: Vectors) -> dict[str, float]:
        """Return the figures of a pass.

        Args:
            embeddings: of the catalog, float32 [num_items, d].

        Returns:
            `validation_{metric}` of last-item queries and `validation_history_{metric}` of history queries, where
            metric is `hr_at_k`, `ndcg_at_k` or `mrr_at_k`; `validation_score`.
        """
        index, max_items = self._index(embeddings), self.protocol.history_items
        last_item = self._metrics(index, Queries.from_items(self.holdout.queries))
        history = self._metrics(index, Queries.from_histories(self.holdout, self.recency, max_items))
        figures = {f"validation_{name}": value for name, value in last_item.items()}
        figures |= {f"validation_history_{name}": value for name, value in history.items()}
        return figures | {VALIDATION_SCORE: validation_score([last_item, history])}

    def _index(self, embeddings: Vectors) -> ExactIndex:
        return ExactIndex(embeddings, self.distance, self.retrievable)

    def _metrics(self, index: ExactIndex, queries: Queries) -> dict[str, float]:
        return ranking_metrics(target_ranks(index, queries, self.holdout.targets))


@dataclass(frozen=True)
class LikenessValidation:
    """Agreement of the nearest neighbors with users who took no part in the training."""

    evidence: Evidence
    known: NDArray[np.bool_]
    """Items that the tower is trained on, bool [num_items]; other items are neither queries nor neighbors."""
    distance: Distance

    @cached_property
    def items(self) -> NDArray[np.int32]:
        """Item numbers whose neighbors are compared with the evidence: a sample of the items with evidence."""
        items = self.evidence.items
        items = items[self.known[items]]
        return np.sort(np.random.default_rng(0).choice(items, min(len(items), MAX_ITEMS), replace=False))

    def evaluate(self, embeddings: Vectors) -> dict[str, float]:
        """Return `validation_agreement_at_10` and its two parts, and `validation_score`, which is the agreement.

        `validation_tolerance` is its standard error: the evidence does not tell passes within it from the best one
        (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3), and the last of them has learned its
        pairs most closely.

        Args:
            embeddings: of the catalog, float32 [num_items, d].
        """
        index = ExactIndex(embeddings, self.distance, self.known)
        top = index.top_k(Queries.from_items(self.items), SEARCHED)
        values = agreement(top, self.items, self.evidence)
        figures = means(values)
        scores = {f"validation_{name}": value for name, value in figures.items()}
        judged = values[AGREEMENT][np.isfinite(values[AGREEMENT])]
        tolerance = float(judged.std() / np.sqrt(len(judged))) if len(judged) else 0.0
        return scores | {VALIDATION_SCORE: figures.get(AGREEMENT, 0.0), VALIDATION_TOLERANCE: tolerance}
