"""How long to wait before something that failed is tried again."""

from __future__ import annotations

import random
from collections.abc import Iterator


def delays(first_s: float, longest_s: float) -> Iterator[float]:
    """Seconds: each about twice the one before, up to the longest, and partly random so that not all come at once."""
    delay = first_s
    while True:
        yield delay * random.uniform(0.5, 1)  # noqa: S311 - no secret
        delay = min(2 * delay, longest_s)
