"""What differs between two releases: neighbors, embeddings and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.evaluation.embedding_drift import aligned_cosines
from recsys.release import quality_gate
from recsys.release.bundle import Release
from recsys.retrieval.results import Neighbor

NEIGHBORS = quality_gate.OVERLAP_K
"""Neighbors of each item that are compared."""
LISTED_NEIGHBORS = 6
"""Neighbors of each item that the report lists."""
LISTED_ITEMS = 4
"""Items of each group that the report lists."""


def compare_releases(challenger: Release | None, champion: Release | None, max_items: int) -> dict[str, Any]:
    """Return `neighbors` of some items in both releases, and `drift` of the embeddings.

    Args:
        challenger: the release of this run; None if it was not published.
        champion: the release to compare with, if there is one.
        max_items: items to compare, drawn at random.
    """
    if challenger is None:
        return {"neighbors": None, "drift": None}
    popularity = challenger.catalog.frame["interactions"].to_numpy()
    by_popularity = np.argsort(-popularity, kind="stable")
    if champion is None:
        groups = {"popular": by_popularity, "new": np.flatnonzero(popularity == 0)}
        return {"neighbors": _side_by_side(challenger, None, groups), "drift": None}
    champion_numbers = champion.catalog.item_numbers(challenger.catalog.item_ids, missing=-1)
    groups = {"popular": by_popularity, "new": by_popularity[champion_numbers[by_popularity] < 0]}
    common, common_in_champion, shared, k = quality_gate.neighbor_overlap(challenger, champion, max_items)
    if not len(common):
        return {"neighbors": _side_by_side(challenger, champion, groups), "drift": None}
    cosines = aligned_cosines(champion.vectors[common_in_champion], challenger.vectors[common])
    changed = common[np.lexsort((common, -popularity[common], shared))]
    return {
        "neighbors": _side_by_side(challenger, champion, {"changed": changed, **groups}),
        "drift": {
            "items": len(common),
            "k": k,
            "shared": np.bincount(shared, minlength=k + 1).tolist(),
            "overlap": float(shared.mean() / k),
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
    """Return the settings that differ; a table that only one of the releases has counts as one setting."""
    flat = [
        {
            f"{table}.{key}": value
            for table, values in tables.items()
            for key, value in (values.items() if isinstance(values, dict) else [("", values)])
        }
        for tables in (champion, challenger)
    ]
    names = sorted(flat[0].keys() | flat[1].keys())
    return [
        {"name": name, "champion": flat[0].get(name), "challenger": flat[1].get(name)}
        for name in names
        if flat[0].get(name) != flat[1].get(name)
    ]


def _side_by_side(
    challenger: Release, champion: Release | None, groups: Mapping[str, NDArray[np.integer[Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """Return the neighbors of the first items of each group in both releases; each item is listed once."""
    listed: set[str] = set()
    sections: dict[str, list[dict[str, Any]]] = {}
    for name, item_numbers in groups.items():
        ids = [challenger.catalog.item_ids[number] for number in item_numbers[: LISTED_ITEMS + len(listed)]]
        chosen = [item_id for item_id in ids if item_id not in listed][:LISTED_ITEMS]
        listed |= set(chosen)
        sections[name] = [_compare_neighbors(item_id, challenger, champion) for item_id in chosen]
    return sections


def _compare_neighbors(item_id: str, challenger: Release, champion: Release | None) -> dict[str, Any]:
    item_number = challenger.catalog.item_number(item_id)
    after = challenger.similar(item_id, NEIGHBORS).neighbors
    before = None
    if champion is not None and champion.catalog.item_numbers([item_id], missing=-1)[0] >= 0:
        before = champion.similar(item_id, NEIGHBORS).neighbors
    ids = {neighbor.item_id for neighbor in after}
    ids_before = {neighbor.item_id for neighbor in before or ()}
    return {
        "item_id": item_id,
        "title": challenger.catalog.titles[item_number],
        "interactions": int(challenger.catalog.frame["interactions"][item_number]),
        "shared": len(ids & ids_before) if before is not None else None,
        "of": len(after),
        "now": _list_neighbors(after, ids_before),
        "before": _list_neighbors(before, ids) if before is not None else None,
    }


def _list_neighbors(neighbors: Sequence[Neighbor], ids_of_other: set[str]) -> list[dict[str, Any]]:
    return [
        {
            "item_id": neighbor.item_id,
            "title": neighbor.title,
            "similarity": neighbor.similarity,
            "both": neighbor.item_id in ids_of_other,
        }
        for neighbor in neighbors[:LISTED_NEIGHBORS]
    ]
