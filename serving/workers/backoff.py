"""Exponential backoff. It is a separate module because the client must not import the packages of the server."""

from __future__ import annotations

import random
from collections.abc import Iterator


def backoff_delays(first_s: float, max_s: float) -> Iterator[float]:
    """Yield the seconds to wait between attempts, which double up to a maximum, with jitter."""
    delay = first_s
    while True:
        yield delay * random.uniform(0.5, 1)  # noqa: S311 - not a secret
        delay = min(2 * delay, max_s)
