"""Similarity-based recommendation: a siamese tower, its embeddings, an index, and the release that holds them."""

from importlib.metadata import version

from recsys.release.bundle import Release

__all__ = ["Release", "__version__"]

__version__ = version("recsys")
