"""Tests, in folders that mirror the packages they test."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""Root of the repository."""
GOLDEN_RELEASES = Path(__file__).parent / "golden"
"""A small release of each format version, `v1` to the current one."""
