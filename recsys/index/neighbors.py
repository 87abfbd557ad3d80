"""The neighbor table: the nearest other items of every item, so that most queries need no search.

On disk one `.npy` file, int32 [num_items, width], that processes map and share. Row i has the items nearest to item i,
ordered by exact similarity, ties by item number. Similarities are not stored: `exact_similarities` computes the same
bits again, and the file is a third of the size that it would have with float64 similarities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.data.storage import map_array
from recsys.errors import InputError
from recsys.index.annoy_index import Index
from recsys.index.distances import Distance, Metric
from recsys.index.embeddings import Vectors
from recsys.index.exact import exact_similarities, item_vector, lower_bounds, rounding_error, take
from recsys.index.queries import PADDING

WIDTH = 256
"""Nearest items in each row: most filters that every twentieth item passes leave ten of them, and `together` ranks an
item's 100 nearest items beside at most 100 followers."""
EXACT_ITEMS: Final[Mapping[Metric, int]] = {"angular": 50_000, "euclidean": 25_000, "manhattan": 10_000}
"""Up to this number of items, comparing every item with every other takes about as long as the index, or less."""
BLOCK = 128
"""Items whose neighbors are computed at a time."""
Neighbors = NDArray[np.int32]
"""Item numbers, int32 [n, k], nearest first; -1 pads short rows."""


def width(num_items: int) -> int:
    """Return the number of neighbors in each row of the table of a catalog."""
    return min(WIDTH, num_items - 1)


def is_exact(num_items: int, distance: Distance) -> bool:
    """Return whether the table of a catalog is computed by exact search, without the index."""
    return num_items <= EXACT_ITEMS[distance.metric]


def exact_neighbors(
    vectors: Vectors,
    item_numbers: NDArray[np.integer],
    k: int,
    distance: Distance,
    mask: NDArray[np.bool_] | None = None,
) -> Neighbors:
    """Return the `k` nearest other items of each item by comparing it with every item.

    Args:
        vectors: float32 [num_items, dimension].
        item_numbers: int [n].
        k: number of neighbors of each item.
        distance: between the vectors.
        mask: items that can be neighbors, bool [num_items]; None for all.
    """
    candidates = np.arange(len(vectors)) if mask is None else np.flatnonzero(mask)
    candidate_vectors = vectors if mask is None else vectors[candidates]
    tolerance = 2 * rounding_error(vectors.shape[1])
    result = np.full((len(item_numbers), k), PADDING, np.int32)
    for start in range(0, len(item_numbers) if k and len(candidates) else 0, BLOCK):
        block = item_numbers[start : start + BLOCK]
        similarities = distance.similarities(vectors[block], candidate_vectors)
        own = np.minimum(np.searchsorted(candidates, block), len(candidates) - 1)
        is_candidate = candidates[own] == block
        similarities[is_candidate, own[is_candidate]] = -np.inf
        # at least the smallest finite number: the item itself is not its neighbor
        bound = np.maximum(lower_bounds(similarities, k) - tolerance, np.finfo(np.float32).min)
        row, column = np.divmod(np.flatnonzero(similarities >= bound[:, None]), len(candidates))
        ends = np.searchsorted(row, np.arange(len(block) + 1))
        result[start : start + BLOCK] = _rank(vectors, distance, block, np.split(candidates[column], ends[1:-1]), k)
    return result


def index_neighbors(index: Index, vectors: Vectors, item_numbers: NDArray[np.integer], k: int) -> Neighbors:
    """Return the same as `exact_neighbors`, as far as the index finds it.

    Args:
        index: of the vectors.
        vectors: float32 [num_items, dimension].
        item_numbers: int [n].
        k: number of neighbors of each item, smaller than the catalog.
    """
    nearest = np.sort(index.neighbors(item_numbers.astype(np.int32), k), axis=1)
    return _rank(vectors, index.distance, item_numbers, list(nearest), k)


def save_exact(vectors: Vectors, path: Path, distance: Distance) -> None:
    """Write the table of a small catalog by exact search."""
    num_items = len(vectors)
    np.save(path, exact_neighbors(vectors, np.arange(num_items), width(num_items), distance))


def load(path: Path, num_items: int) -> Neighbors:
    """Map the table of a release.

    Raises:
        InputError: not the table of this number of items.
    """
    table = map_array(path, "neighbors")
    has_format = table.shape == (num_items, width(num_items)) and table.dtype == np.dtype("<i4")
    if has_format and (not table.size or (table.min() >= 0 and table.max() < num_items)):
        return table
    raise InputError(
        f"neighbors must be item numbers, int32 [{num_items}, {width(num_items)}]. "
        f"Received {path}: {table.dtype} {list(table.shape)}."
    )


def _rank(
    vectors: Vectors,
    distance: Distance,
    item_numbers: NDArray[np.integer],
    candidates: Sequence[NDArray[np.integer]],
    k: int,
) -> Neighbors:
    """Return the `k` nearest of each item's candidates, which are ascending item numbers.

    Item by item: the vectors of one item's candidates stay in the processor's cache.
    """
    result = np.full((len(item_numbers), k), PADDING, np.int32)
    for row, item_number, candidate in zip(result, item_numbers.tolist(), candidates, strict=True):
        similarities = exact_similarities(
            distance, item_vector(vectors, item_number, distance), take(vectors, candidate)
        )
        nearest = candidate[np.argsort(-similarities, kind="stable")[:k]]
        row[: len(nearest)] = nearest
    return result
