"""Time and memory of the associations of items, on synthetic interactions.

    python -m benchmarks.association [--interactions N] [--items N] --json OUT

Items form clusters with a Zipf distribution of popularity, and most interactions of a user are in two of them. Each
function of `recsys.data.association` runs in its own process. The plain code counts the common users of all pairs of
items with SciPy, 1,000 items at a time, and keeps nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse

from benchmarks import own_process
from benchmarks.command import FIGURES, parser, write
from recsys.data import association

ITEMS_PER_USER, ITEMS_PER_CLUSTER, CLUSTERS_PER_USER, IN_CLUSTERS, ZIPF_EXPONENT = 25, 400, 2, 0.8, 0.8
MAX_POSITIVES = 100


def synthetic_interactions(num_interactions: int, num_items: int, seed: int = 0) -> sparse.csr_array:
    """Return whether users interacted with items, [num_users, num_items]."""
    rng = np.random.default_rng(seed)
    num_users, num_clusters = num_interactions // ITEMS_PER_USER, max(1, num_items // ITEMS_PER_CLUSTER)
    users = np.repeat(np.arange(num_users), ITEMS_PER_USER)
    own = rng.integers(num_clusters, size=(num_users, CLUSTERS_PER_USER))
    own_cluster = own[users, rng.integers(CLUSTERS_PER_USER, size=len(users))]
    any_cluster = rng.integers(num_clusters, size=len(users))
    cluster = np.where(rng.random(len(users)) < IN_CLUSTERS, own_cluster, any_cluster)
    size = num_items // num_clusters
    popularity = np.arange(1.0, size + 1) ** -ZIPF_EXPONENT
    within = np.searchsorted(np.cumsum(popularity) / popularity.sum(), rng.random(len(users))).clip(max=size - 1)
    cells = np.ones(len(users), np.float32), (users, cluster * size + within)
    matrix = sparse.coo_array(cells, shape=(num_users, num_items)).tocsr()
    matrix.data[:] = 1
    return matrix


def count_common_users(interactions: sparse.csr_array, step: int = 1_000) -> int:
    """Count the pairs of items with common users."""
    by_item = interactions.T.tocsr()
    return sum((by_item[start : start + step] @ interactions).nnz for start in range(0, by_item.shape[0], step))


Measured = Callable[[sparse.csr_array], object]
FUNCTIONS: dict[str, Measured] = {
    "plain": count_common_users,
    "shrunk_lift": lambda interactions: association.shrunk_lift(interactions, 10.0, MAX_POSITIVES),
    "partial_weights": lambda interactions: association.partial_weights(interactions, 200.0, 3.0, MAX_POSITIVES),
}


def measure(name: str, num_interactions: int, num_items: int) -> dict[str, float]:
    """Return the seconds of a function, and the peak memory of the process in MiB."""
    interactions = synthetic_interactions(num_interactions, num_items)
    started = time.perf_counter()
    FUNCTIONS[name](interactions)
    return {"seconds": round(time.perf_counter() - started, 1), "peak_mib": round(own_process.peak_mib())}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as a program."""
    options = parser(__doc__, FIGURES)
    options.add_argument("--interactions", type=int, default=10_000_000, metavar="N", help="number of interactions")
    options.add_argument("--items", type=int, default=200_000, metavar="N", help="size of the catalog")
    arguments = options.parse_args(argv)
    size = arguments.interactions, arguments.items
    figures = {name: own_process.run("benchmarks.association", "measure", name, *size) for name in FUNCTIONS}
    plain = figures["plain"]["seconds"]
    for each in figures.values():
        each["relative_to_plain"] = round(each["seconds"] / max(plain, 0.1), 2)
    print(write(figures, arguments.json))


if __name__ == "__main__":
    main()
