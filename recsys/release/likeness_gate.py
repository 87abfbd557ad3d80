"""Gate checks of likeness: do the neighbors of a release agree with what the users held out of the run associate?

A release is trained on all users, those held out of the comparison of towers too. So its agreement is higher than the
one that `evaluate` reports, but two releases have the same advantage, and their difference is fair. If only one of them
has an own space for `similar`, the advantages differ. Then the agreement that both evaluations report is compared.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys.config.sections import PromoteConfig
from recsys.data.catalog import Catalog
from recsys.evaluation import likeness
from recsys.evaluation.likeness import AGREEMENT, SEARCHED, Evidence
from recsys.evaluation.metrics import CONFIDENCE
from recsys.index.queries import PADDING
from recsys.release.bundle import Release
from recsys.release.check import Check, at_least, skipped
from recsys.release.embedding_space import EmbeddingSpace
from recsys.release.quality_gate import Difference, change_check, paired_change_check

CHANGE = f"{AGREEMENT}_change"


class UsersEvidence(NamedTuple):
    """What the users held out of a run associate."""

    evidence: Evidence
    catalog: Catalog
    """Catalog of the run; its item numbers are those of the evidence."""
    floor: float
    """Agreement of the popularity baseline of the run."""


def agreement_by_item(space: EmbeddingSpace, users: UsersEvidence) -> NDArray[np.float64]:
    """Return the agreement of each item with evidence, float64 [n]; NaN for items that the space lacks.

    Items are compared by id. Neighbors that the catalog of the run lacks are skipped, like those that are not judged.
    """
    items = users.evidence.items
    ids = users.catalog.item_ids
    numbers = space.catalog.item_numbers([ids[item] for item in items], missing=PADDING)
    in_space = numbers != PADDING
    # item number of the space -> item number of the run; the last entry maps padding to itself
    to_run = np.append(users.catalog.item_numbers(space.catalog.item_ids, missing=PADDING), np.int32(PADDING))
    top = to_run[space.nearest_items(numbers[in_space], SEARCHED)]
    values = np.full(len(items), np.nan)
    values[in_space] = likeness.agreement(top, items[in_space], users.evidence)[AGREEMENT]
    return values


def likeness_checks(
    challenger: Release,
    champion: Release | None,
    users: UsersEvidence | None,
    *,
    config: PromoteConfig,
    resamples: int,
) -> list[Check]:
    """Compare the agreement with other users with a floor and with the champion.

    Args:
        challenger: the new release.
        champion: the current champion, None before the first.
        users: what the users held out of the run associate, None without evidence.
        config: tolerances.
        resamples: number of bootstrap resamples.
    """
    if users is None:
        return [skipped(name, "no evidence of likeness") for name in (AGREEMENT, CHANGE)]
    values = agreement_by_item(challenger.space("similar"), users)
    measured = values[np.isfinite(values)]
    floor = at_least(AGREEMENT, measured.mean() if len(measured) else 0.0, users.floor)
    if champion is None:
        return [floor, skipped(CHANGE, "no champion")]
    if challenger.space_name("similar") != champion.space_name("similar"):
        return [floor, _evaluation_check(challenger, champion, config.tolerance)]
    champion_values = agreement_by_item(champion.space("similar"), users)
    common = np.isfinite(values) & np.isfinite(champion_values)
    if not common.any():
        return [floor, skipped(CHANGE, "no common items with evidence")]
    change = paired_change_check(CHANGE, values[common], champion_values[common], config.tolerance, resamples)
    return [floor, change]


def _evaluation_check(challenger: Release, champion: Release, tolerance: float) -> Check:
    """Compare the agreement that the evaluations of two releases report, of towers trained without the users held out.

    Each was measured by its own run, so the difference is not paired.
    """
    reports = []
    for release in (challenger, champion):
        evaluated = release.evaluation.get("likeness")
        report = evaluated["model"].get(release.space_name("similar"), {}) if evaluated else {}
        if AGREEMENT not in report:
            return skipped(CHANGE, f"the evaluation of {release.release_id} has no agreement with other users")
        reports.append(report)
    value, champion_value = (report[AGREEMENT] for report in reports)
    half_widths = [(high - low) / 2 for low, high in (report["intervals"][AGREEMENT] for report in reports)]
    half_width = float(np.hypot(*half_widths))
    mean = value - champion_value
    standard_error = half_width / NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    difference = Difference(mean, mean - half_width, standard_error)
    reason = "of the evaluations, because only one of both has an own space"
    return change_check(CHANGE, difference, champion_value, tolerance, reason)
