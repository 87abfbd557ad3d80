"""Likeness gate: agreement by item id agrees with a naive computation, and unfair comparisons are not made."""

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from recsys.config.sections import PromoteConfig
from recsys.data.catalog import Catalog
from recsys.evaluation.likeness import Evidence
from recsys.release.bundle import Release
from recsys.release.likeness_gate import UsersEvidence, agreement_by_item, likeness_checks
from recsys.release.manifest import Manifest
from tests.recsys.release.test_gate import by_name, exact, space, unit

RUN_ITEMS = [f"i{number:02d}" for number in range(5, 47)]
"""Items of the run: the champion lacks the last ones, and has others that the run lacks."""
CHAMPION_ITEMS = [f"i{number:02d}" for number in range(40)]


def users_evidence(floor=0.2, item_ids=RUN_ITEMS, seed=0):
    """Items 3, 8 and 13 of the run have no evidence."""
    rng = np.random.default_rng(seed)
    size = len(item_ids)
    lift, partial = (rng.random((size, size)) * (rng.random((size, size)) < share) for share in (0.5, 0.2))
    for dense in (lift, partial):
        np.fill_diagonal(dense, 0)
        dense[[3, 8, 13]] = dense[:, [3, 8, 13]] = 0
    judged = lift.any(axis=1)
    catalog = Catalog(pl.DataFrame({"item_id": item_ids, "title": item_ids}))
    return UsersEvidence(Evidence(sparse.csr_array(lift), sparse.csr_array(partial), judged), catalog, floor)


def naive_agreement(compared, users, item_id):
    """Sort all items by similarity, and compare the first ten that are judged with the best possible ten."""
    ids = users.catalog.item_ids
    query = compared.catalog.item_ids.index(item_id)
    order = sorted(range(len(compared.vectors)), key=lambda other: -compared.vectors[query] @ compared.vectors[other])
    neighbors = [compared.catalog.item_ids[other] for other in order if other != query]
    numbers = [ids.index(each) for each in neighbors if each in ids and users.evidence.judged[ids.index(each)]]
    ndcgs = []
    for relevance in (users.evidence.lift, users.evidence.partial):
        gains = relevance.toarray()[ids.index(item_id)]
        received, best = gains[numbers][:10], np.sort(gains)[::-1][:10]
        discount = 1 / np.log2(np.arange(10) + 2)
        ndcgs.append((received * discount[: len(received)]).sum() / (best * discount).sum())
    return np.mean(ndcgs)


def release(compared, *, own=False, agreement=None, interval=(0.0, 0.0)):
    """Return a release whose sense `similar` is answered by a space, and whose evaluation reports an agreement."""
    spaces = {"next": space({}), "similar": compared} if own else {"next": compared}
    result = Release(compared.path, Manifest.model_construct(release_id="r"), compared.catalog, spaces)
    report = {} if agreement is None else {"agreement_at_10": agreement, "intervals": {"agreement_at_10": interval}}
    evaluation = {"likeness": {"model": {"similar" if own else "next": report}}}
    result.__dict__["evaluation"] = evaluation  # the value of the cached property
    return result


def compare(challenger, champion, users, tolerance=0.05):
    checks = likeness_checks(challenger, champion, users, config=PromoteConfig(tolerance=tolerance), resamples=2_000)
    by_names = by_name(checks)
    return by_names["agreement_at_10"], by_names["agreement_at_10_change"]


def test_agreement_by_item_id_agrees_with_a_naive_computation():
    users = users_evidence()
    champion = exact(unit(40, 6), items=CHAMPION_ITEMS)
    evidence_ids = [users.catalog.item_ids[item] for item in users.evidence.items]
    assert len(evidence_ids) == len(RUN_ITEMS) - 3
    expected = [naive_agreement(champion, users, each) if each in CHAMPION_ITEMS else np.nan for each in evidence_ids]
    assert np.isnan(expected).sum() == 7
    np.testing.assert_allclose(agreement_by_item(champion, users), expected)


def test_change_is_paired_over_the_items_that_both_releases_have():
    users = users_evidence()
    challenger, champion = exact(unit(42, 5, seed=1), items=RUN_ITEMS), exact(unit(40, 6), items=CHAMPION_ITEMS)
    common = [users.catalog.item_ids[item] for item in users.evidence.items]
    common = [item_id for item_id in common if item_id in CHAMPION_ITEMS]
    values, champion_values = (
        np.array([naive_agreement(each, users, item_id) for item_id in common]) for each in (challenger, champion)
    )
    difference = values - champion_values
    rng = np.random.default_rng(1)
    low = np.percentile([rng.choice(difference, len(common)).mean() for _ in range(4_000)], 2.5)
    standard_error = difference.std() / np.sqrt(len(common))
    floor, change = compare(release(challenger), release(champion), users)
    assert change.value == pytest.approx(
        low / champion_values.mean(), abs=0.1 * standard_error / champion_values.mean()
    )
    assert change.limit == pytest.approx(-5 * standard_error / champion_values.mean())
    assert f"from {champion_values.mean():.4f} to {values.mean():.4f}, {len(common)} queries" in change.reason
    assert floor.limit == users.floor
    assert floor.value == pytest.approx(np.nanmean(agreement_by_item(challenger, users)))


def test_loss_beyond_the_tolerance_fails():
    """The champion returns the associated items of each item first, the challenger last."""
    users = users_evidence(floor=0.3)
    relevance = (users.evidence.lift + users.evidence.partial).toarray()
    orders = {item: np.argsort(-relevance[row]) for row, item in enumerate(RUN_ITEMS)}
    best, worst = (
        release(
            space(
                {item: [RUN_ITEMS[n] for n in order[::step] if RUN_ITEMS[n] != item] for item, order in orders.items()},
                items=RUN_ITEMS,
            )
        )
        for step in (1, -1)
    )
    floor, change = compare(worst, best, users)
    assert (floor.verdict, change.verdict) == ("failed", "failed")
    assert {check.verdict for check in compare(best, worst, users)} == {"passed"}
    assert compare(best, best, users, tolerance=0.0)[1].value == 0.0


@pytest.mark.parametrize(("agreement", "verdict"), [(0.58, "passed"), (0.5, "failed")])
def test_evaluations_are_compared_if_only_one_release_has_an_own_space(agreement, verdict):
    """A space trained on associations of all users has a larger advantage than one trained on what comes next."""
    challenger = release(
        exact(unit(42, 5), items=RUN_ITEMS), agreement=agreement, interval=(agreement, agreement + 0.06)
    )
    champion = release(exact(unit(42, 5), items=RUN_ITEMS), own=True, agreement=0.6, interval=(0.56, 0.64))
    _, change = compare(challenger, champion, users_evidence())
    half_width = 0.05  # of 0.03 and 0.04
    assert change.value == pytest.approx((agreement - 0.6 - half_width) / 0.6)
    assert change.limit == pytest.approx(-5 * half_width / 1.96 / 0.6, rel=1e-4)
    assert change.verdict == verdict
    assert "of the evaluations" in change.reason


def test_skipped_checks_have_a_reason():
    users = users_evidence()
    own, shared = release(exact(unit(42, 5), items=RUN_ITEMS), own=True), release(exact(unit(42, 5), items=RUN_ITEMS))
    other = release(exact(unit(3, 5), items=["x", "y", "z"]))
    assert {check.reason for check in compare(own, shared, None)} == {"no evidence of likeness"}
    for challenger, champion, reason in (
        (own, None, "no champion"),
        (own, shared, "the evaluation of r has no agreement with other users"),
        (shared, other, "no common items with evidence"),
    ):
        floor, change = compare(challenger, champion, users)
        assert floor.verdict in {"passed", "failed"}
        assert (change.verdict, change.reason) == ("skipped", reason)
    shared.evaluation.pop("likeness")  # an earlier version of the release format
    assert compare(own, shared, users)[1].verdict == "skipped"
