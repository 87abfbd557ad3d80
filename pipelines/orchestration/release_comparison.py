"""Comparison of two releases: neighbors, embeddings and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recsys.config.senses import Sense
from recsys.evaluation.embedding_drift import aligned_cosines
from recsys.release import quality_gate
from recsys.release.bundle import Release
from recsys.retrieval.results import Neighbor

NEIGHBORS = quality_gate.OVERLAP_K
"""Number of nearest neighbors that are compared."""
SENSE: Final[Sense] = "similar"
"""Sense whose neighbors and embeddings are compared: the one that answers by default."""
LISTED_NEIGHBORS = 6
"""Number of neighbors per item in the report."""
LISTED_ITEMS = 4
"""Number of items per group in the report."""


def compare_releases(challenger: Release | None, champion: Release | None, max_items: int) -> dict[str, Any]:
    """Compare the neighbors and the embeddings of two releases.

    Args:
        challenger: the release of this run; None if it was not published.
        champion: the release to compare with; None if there is none.
        max_items: size of the random sample of items whose neighbors and embeddings are compared.

    Returns:
        `neighbors`: neighbors of some items in both releases, by group of items; `drift`: statistics of the sample.
        Both are None without a challenger; `drift` is also None if the releases have no common item.
    """
    if challenger is None:
        return {"neighbors": None, "drift": None}
    space = challenger.space(SENSE)
    popularity = challenger.catalog.frame["interactions"].to_numpy()
    by_popularity = np.argsort(-popularity, kind="stable")
    if champion is None:
        groups = {"popular": by_popularity, "new": np.flatnonzero(popularity == 0)}
        return {"neighbors": _side_by_side(challenger, None, groups), "drift": None}
    champion_numbers = champion.catalog.item_numbers(challenger.catalog.item_ids, missing=-1)
    groups = {"popular": by_popularity, "new": by_popularity[champion_numbers[by_popularity] < 0]}
    common, common_in_champion, num_shared, k = quality_gate.neighbor_overlap(space, champion.space(SENSE), max_items)
    if not len(common):
        return {"neighbors": _side_by_side(challenger, champion, groups), "drift": None}
    cosines = aligned_cosines(champion.space(SENSE).vectors[common_in_champion], space.vectors[common])
    changed = common[np.lexsort((common, -popularity[common], num_shared))]
    return {
        "neighbors": _side_by_side(challenger, champion, {"changed": changed, **groups}),
        "drift": {
            "items": len(common),
            "k": k,
            "shared": np.bincount(num_shared, minlength=k + 1).tolist(),
            "overlap": float(num_shared.mean() / k),
            "cosine": {
                "mean": float(cosines.mean()),
                **{f"{share:.0%}": float(np.quantile(cosines, share)) for share in (0.05, 0.25, 0.5, 0.75, 0.95)},
            },
            "most_changed": [
                {
                    "item_id": challenger.catalog.item_ids[common[row]],
                    "title": challenger.catalog.titles[common[row]],
                    "cosine": float(cosines[row]),
                }
                for row in np.argsort(cosines, kind="stable")[:LISTED_ITEMS]
            ],
        },
    }


def compare_settings(champion: Mapping[str, Any], challenger: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings that differ between two releases, with both values."""
    champion_settings, challenger_settings = (
        {
            f"{table}.{key}": value
            for table, values in tables.items()
            for key, value in (values.items() if isinstance(values, dict) else [("", values)])
        }
        for tables in (champion, challenger)
    )
    names = sorted(champion_settings.keys() | challenger_settings.keys())
    return [
        {"name": name, "champion": champion_settings.get(name), "challenger": challenger_settings.get(name)}
        for name in names
        if champion_settings.get(name) != challenger_settings.get(name)
    ]


def _side_by_side(
    challenger: Release, champion: Release | None, groups: Mapping[str, NDArray[np.integer[Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """Return the neighbors in both releases of the first items of each group. An item is in one group only."""
    listed: set[str] = set()
    sections: dict[str, list[dict[str, Any]]] = {}
    for name, item_numbers in groups.items():
        ids = [challenger.catalog.item_ids[number] for number in item_numbers[: LISTED_ITEMS + len(listed)]]
        new_ids = [item_id for item_id in ids if item_id not in listed][:LISTED_ITEMS]
        listed |= set(new_ids)
        sections[name] = [_compare_neighbors(item_id, challenger, champion) for item_id in new_ids]
    return sections


def _compare_neighbors(item_id: str, challenger: Release, champion: Release | None) -> dict[str, Any]:
    item_number = challenger.catalog.item_number(item_id)
    neighbors = challenger.similar(item_id, NEIGHBORS).neighbors
    previous_neighbors = None
    if champion is not None and champion.catalog.item_numbers([item_id], missing=-1)[0] >= 0:
        previous_neighbors = champion.similar(item_id, NEIGHBORS).neighbors
    ids = {neighbor.item_id for neighbor in neighbors}
    previous_ids = {neighbor.item_id for neighbor in previous_neighbors or ()}
    return {
        "item_id": item_id,
        "title": challenger.catalog.titles[item_number],
        "interactions": int(challenger.catalog.frame["interactions"][item_number]),
        "shared": len(ids & previous_ids) if previous_neighbors is not None else None,
        "of": len(neighbors),
        "now": _list_neighbors(neighbors, previous_ids),
        "before": _list_neighbors(previous_neighbors, ids) if previous_neighbors is not None else None,
    }


def _list_neighbors(neighbors: Sequence[Neighbor], ids_in_other_release: set[str]) -> list[dict[str, Any]]:
    return [
        {
            "item_id": neighbor.item_id,
            "title": neighbor.title,
            "similarity": neighbor.similarity,
            "both": neighbor.item_id in ids_in_other_release,
        }
        for neighbor in neighbors[:LISTED_NEIGHBORS]
    ]
