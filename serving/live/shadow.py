"""Shadow traffic: queries are repeated on the challenger and compared. Its results are not returned."""

from __future__ import annotations

import logging
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from recsys.errors import RecsysError
from recsys.retrieval.query import Query
from recsys.retrieval.results import SearchResult
from serving.live.live_release import LiveRelease
from serving.middleware.metrics import Metrics

logger = logging.getLogger(__name__)

MAX_PENDING = 8
"""Maximum number of queries that wait for the challenger. Further queries are skipped: the champion never waits."""


class Shadow:
    """Repeats a share of the queries on the challenger, in its own thread.

    Args:
        share: share of the queries, from 0 to 1.
        metrics: records overlap and durations.
    """

    def __init__(self, share: float, metrics: Metrics) -> None:
        self._share = share
        self._metrics = metrics
        self._executor = ThreadPoolExecutor(1, "shadow")
        self._pending = threading.Semaphore(MAX_PENDING)

    def submit(self, challenger: LiveRelease, query: Query, result: SearchResult, champion_s: float) -> None:
        """Compare a result of the champion with the challenger's, for a share of the calls; does not wait.

        Args:
            challenger: searched with the same query.
            query: a query.
            result: the champion's result.
            champion_s: seconds that the champion took.
        """
        if random.random() < self._share and self._pending.acquire(blocking=False):  # noqa: S311 - not a secret
            self._executor.submit(self._compare, challenger, query, result, champion_s)

    def close(self) -> None:
        """Stop the thread."""
        self._executor.shutdown(cancel_futures=True)

    def _compare(self, challenger: LiveRelease, query: Query, result: SearchResult, champion_s: float) -> None:
        try:
            started_at = time.perf_counter()
            challenger_result = challenger.search(query)
            challenger_s = time.perf_counter() - started_at
            self._metrics.observe_shadow(overlap(result, challenger_result), champion_s, challenger_s)
        except RecsysError:
            self._metrics.count_shadow_failure()
        except Exception:
            self._metrics.count_shadow_failure()
            logger.exception("unexpected error of the challenger")
        finally:
            self._pending.release()


def overlap(first: SearchResult, second: SearchResult) -> float:
    """Return the share of the first result's neighbors that the second one has too; 1 if the first has none."""
    item_ids = {neighbor.item_id for neighbor in first.neighbors}
    common = sum(neighbor.item_id in item_ids for neighbor in second.neighbors)
    return common / len(item_ids) if item_ids else 1.0
