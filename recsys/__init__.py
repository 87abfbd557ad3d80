"""Similarity-based recommendation: a siamese tower, its embeddings, an index, and the release that holds them."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys.release.bundle import Release

__all__ = ["Release", "__version__"]

__version__ = version("recsys")


def __getattr__(name: str) -> Any:
    """Import `Release` with its libraries when it is used; most commands need it late or not at all."""
    if name != "Release":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from recsys.release.bundle import Release  # noqa: PLC0415

    return Release
