"""Tests, in folders that mirror the packages they test."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""Root of the repository."""
GOLDEN_RELEASES = Path(__file__).parent / "golden"
"""A small release of each format version, `v1` to the current one."""


def memory_mb(*, rows: int = 0, items: int = 0, shard: int = 0, exported: int = 0) -> float:
    """Return the `resources.memory_mb` that gives units of this size.

    Rows in a unit of `prepare`, items in a unit of `embed`, in a shard of the index, or in a unit of `export`.
    """
    return max(rows / 125, items / 32.768, shard / 250, exported / 1.25)
