"""Tests. The folders mirror the packages."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""Root of the repository."""
GOLDEN_RELEASES = Path(__file__).parent / "golden"
"""Folder with a small release of each format version, from `v1` to the current version."""


def memory_mb(*, rows: int = 0, items: int = 0, shard: int = 0, exported: int = 0) -> float:
    """Return the setting `resources.memory_mb` that gives units of a certain size.

    Args:
        rows: rows in a unit of `prepare`.
        items: items in a unit of `embed`.
        shard: items in a shard of the index.
        exported: items in a unit of `export`.
    """
    return max(rows / 125, items / 32.768, shard / 250, exported / 1.25)
