import math

import numpy as np
import pytest

from recsys.data import pairs
from recsys.index.distances import DISTANCES
from recsys.model import hard_negatives

NUM_ITEMS, DIMENSION = 61, 5


def dense_pairs(seed=0):
    """Items 3 and 40 have no pairs."""
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random((NUM_ITEMS, NUM_ITEMS)) < 0.06, 1.5, 0)
    np.fill_diagonal(dense, 0)
    dense[:, 17] = np.arange(NUM_ITEMS) != 17
    dense[[3, 40]] = 0
    return dense


DENSE = dense_pairs()


def vectors_of(distance, seed=1):
    vectors = np.random.default_rng(seed).normal(size=(NUM_ITEMS, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if DISTANCES[distance].unit_norm else vectors


def similarity(distance, one, other):
    if distance == "cosine":
        return sum(a * b for a, b in zip(one, other, strict=True))
    power = 2 if distance == "euclidean" else 1
    apart = sum(abs(a - b) ** power for a, b in zip(one, other, strict=True)) ** (1 / power)
    return 1 / (1 + apart)


def naive(vectors, distance):
    """Hard negatives of each anchor as sets, and the report, by loops."""
    rows = vectors.astype(float).tolist()
    report = dict.fromkeys(("considered", "known_positive", "too_similar", "kept"), 0)
    found = {}
    for anchor in range(NUM_ITEMS):
        positives = set(np.flatnonzero(DENSE[anchor]).tolist())
        if not positives:
            continue
        similarities = {n: similarity(distance, rows[anchor], rows[n]) for n in range(NUM_ITEMS) if n != anchor}
        least = min(similarities[n] for n in positives)
        nearest = sorted(similarities, key=lambda n, known=similarities: -known[n])
        first, last = hard_negatives.RANKS
        found[anchor] = set()
        for item in nearest[first - 1 : last]:
            report["considered"] += 1
            if item in positives:
                report["known_positive"] += 1
            elif similarities[item] >= least - hard_negatives.MARGIN * abs(least):
                report["too_similar"] += 1
            else:
                report["kept"] += 1
                found[anchor].add(item)
    return found, report


def mined(store, vectors, distance, seed=0):
    return hard_negatives.mine(vectors, store(DENSE), DISTANCES[distance], np.random.default_rng(seed))


def set_limits(monkeypatch, ranks, margin):
    monkeypatch.setattr(hard_negatives, "RANKS", ranks)
    monkeypatch.setattr(hard_negatives, "MARGIN", margin)


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.6], ids="margin {}".format)
@pytest.mark.parametrize("ranks", [(1, 60), (10, 35), (20, 500), (7, 7), (61, 500)], ids=str)
@pytest.mark.parametrize("distance", list(DISTANCES))
def test_mining_agrees_with_a_loop(store, monkeypatch, distance, ranks, margin):
    monkeypatch.setattr(pairs, "ROW_GROUP_PAIRS", 40)
    monkeypatch.setattr(hard_negatives, "ANCHORS_PER_BLOCK", 4)
    set_limits(monkeypatch, ranks, margin)
    vectors = vectors_of(distance)
    negatives, report = mined(store, vectors, distance)
    expected, told = naive(vectors, distance)
    assert negatives.shape == (NUM_ITEMS, hard_negatives.MAX_NEGATIVES)
    assert negatives.dtype == np.int32
    assert report == told
    assert report["considered"] == report["known_positive"] + report["too_similar"] + report["kept"]
    for item, row in enumerate(negatives.tolist()):
        kept = [number for number in row if number >= 0]
        assert row == kept + [-1] * (hard_negatives.MAX_NEGATIVES - len(kept))
        assert len(set(kept)) == len(kept)
        assert set(kept) == expected.get(item, set())
        assert item not in kept
    if ranks[1] == 60 and margin == 0:
        assert min(report.values()) > 0


def test_the_world_has_least_positives_of_either_sign():
    """So that the rule of the margin is proven for similarities below 0 too."""
    vectors = vectors_of("cosine").astype(float)
    least = [min(vectors[row] @ vectors[n] for n in np.flatnonzero(DENSE[row])) for row in (0, 1, 2, 5, 8, 13, 21)]
    assert min(least) < 0
    anchors = [row for row in range(NUM_ITEMS) if DENSE[row].any()]
    assert max(min(vectors[row] @ vectors[n] for n in np.flatnonzero(DENSE[row])) for row in anchors) > 0


@pytest.mark.parametrize(("angle", "kept"), [(133.0, False), (137.0, True)], ids=str)
def test_a_margin_lies_below_a_similarity_that_is_negative(store, monkeypatch, angle, kept):
    """The positive is at 130 degrees, cos = -0.643; a margin of 0.1 puts the limit at -0.707, 135 degrees."""
    degrees = [0.0, 130.0, angle]
    vectors = np.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees], np.float32)
    dense = np.zeros((3, 3))
    dense[0, 1] = 1
    set_limits(monkeypatch, (1, 2), 0.1)
    negatives, report = hard_negatives.mine(vectors, store(dense), DISTANCES["cosine"], np.random.default_rng(0))
    assert (2 in negatives[0]) == kept
    assert report == {"considered": 2, "known_positive": 1, "too_similar": int(not kept), "kept": int(kept)}


def test_of_more_than_fit_a_random_part_is_kept(store, monkeypatch):
    monkeypatch.setattr(hard_negatives, "MAX_NEGATIVES", 6)
    set_limits(monkeypatch, (1, 60), 0.0)
    vectors = vectors_of("cosine")
    expected, told = naive(vectors, "cosine")
    seen = {anchor: set() for anchor in expected}
    rows = []
    for seed in range(40):
        negatives, report = mined(store, vectors, "cosine", seed)
        assert report == told
        rows.append(negatives.tolist())
        for anchor, wanted in expected.items():
            kept = set(negatives[anchor].tolist()) - {-1}
            assert kept <= wanted
            assert len(kept) == min(6, len(wanted))
            seen[anchor] |= kept
    assert max(len(wanted) for wanted in expected.values()) > 6
    assert rows[0] != rows[1]
    assert rows[0] == mined(store, vectors, "cosine", 0).negatives.tolist()
    large = [anchor for anchor, wanted in expected.items() if len(wanted) > 6]
    assert sum(len(seen[anchor]) for anchor in large) > 0.9 * sum(len(expected[anchor]) for anchor in large)
