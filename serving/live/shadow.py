"""A challenger that is asked too: its answers are compared with the champion's, and not shown."""

from __future__ import annotations

import logging
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from recsys.errors import RecsysError
from recsys.retrieval.query import Query
from recsys.retrieval.results import SearchResult
from serving.live.live_release import Edition
from serving.middleware.metrics import Telemetry

logger = logging.getLogger(__name__)

PENDING = 8
"""Questions that may wait for the challenger; it misses the others, rather than the champion waiting."""


class Shadow:
    """Asks a share of the questions again, in a thread of its own.

    Args:
        share: of the questions.
        telemetry: is told overlap and latency.
    """

    def __init__(self, share: float, telemetry: Telemetry) -> None:
        self._share = share
        self._telemetry = telemetry
        self._thread = ThreadPoolExecutor(1, "shadow")
        self._room = threading.Semaphore(PENDING)

    def ask(self, challenger: Edition, question: Query, answer: SearchResult, took_s: float) -> None:
        """Ask the challenger what the champion answered, if it is this question's turn; does not wait."""
        if random.random() < self._share and self._room.acquire(blocking=False):  # noqa: S311 - no secret
            self._thread.submit(self._compare, challenger, question, answer, took_s)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _compare(self, challenger: Edition, question: Query, answer: SearchResult, took_s: float) -> None:
        try:
            started = time.perf_counter()
            other = challenger.ask(question)
            self._telemetry.shadowed(overlap(answer, other), took_s, time.perf_counter() - started)
        except RecsysError:
            self._telemetry.shadow_failed()
        except Exception:
            self._telemetry.shadow_failed()
            logger.exception("the challenger failed")
        finally:
            self._room.release()


def overlap(answer: SearchResult, other: SearchResult) -> float:
    """Share of an answer's neighbors that another one has too; 1 where there are none."""
    item_ids = {neighbor.item_id for neighbor in answer.neighbors}
    common = sum(neighbor.item_id in item_ids for neighbor in other.neighbors)
    return common / len(item_ids) if item_ids else 1.0
