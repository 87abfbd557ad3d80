import math

import numpy as np
import pytest

from recsys.data import pairs
from recsys.index.distances import DISTANCES
from recsys.model import hard_negatives

NUM_ITEMS, DIMENSION = 61, 5


def dense_pairs(seed=0):
    """Pair weights; items 3 and 40 have no pairs."""
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


def similarity(distance, left, right):
    if distance == "cosine":
        return sum(a * b for a, b in zip(left, right, strict=True))
    power = 2 if distance == "euclidean" else 1
    length = sum(abs(a - b) ** power for a, b in zip(left, right, strict=True)) ** (1 / power)
    return 1 / (1 + length)


def naive(vectors, distance):
    """Return the set of hard negatives of each anchor, and the report, by loops."""
    rows = vectors.astype(float).tolist()
    report = dict.fromkeys(("considered", "known_positive", "too_similar", "kept"), 0)
    negatives = {}
    for anchor in range(NUM_ITEMS):
        positives = set(np.flatnonzero(DENSE[anchor]).tolist())
        if not positives:
            continue
        similarities = {n: similarity(distance, rows[anchor], rows[n]) for n in range(NUM_ITEMS) if n != anchor}
        lowest = min(similarities[n] for n in positives)
        nearest = sorted(similarities, key=lambda n, values=similarities: -values[n])
        first, last = hard_negatives.RANKS
        negatives[anchor] = set()
        for item in nearest[first - 1 : last]:
            report["considered"] += 1
            if item in positives:
                report["known_positive"] += 1
            elif similarities[item] >= lowest - hard_negatives.MARGIN * abs(lowest):
                report["too_similar"] += 1
            else:
                report["kept"] += 1
                negatives[anchor].add(item)
    return negatives, report


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
    expected, expected_report = naive(vectors, distance)
    assert negatives.shape == (NUM_ITEMS, hard_negatives.MAX_NEGATIVES)
    assert negatives.dtype == np.int32
    assert report == expected_report
    assert report["considered"] == report["known_positive"] + report["too_similar"] + report["kept"]
    for item, row in enumerate(negatives.tolist()):
        numbers = [number for number in row if number >= 0]
        assert row == numbers + [-1] * (hard_negatives.MAX_NEGATIVES - len(numbers))
        assert len(set(numbers)) == len(numbers)
        assert set(numbers) == expected.get(item, set())
        assert item not in numbers
    if ranks[1] == 60 and margin == 0:
        assert min(report.values()) > 0


def test_lowest_similarity_of_positives_has_either_sign_in_this_catalog():
    """Otherwise the test above would not cover margins of negative similarities."""
    vectors = vectors_of("cosine").astype(float)
    lowest = [min(vectors[row] @ vectors[n] for n in np.flatnonzero(DENSE[row])) for row in (0, 1, 2, 5, 8, 13, 21)]
    assert min(lowest) < 0
    anchors = [row for row in range(NUM_ITEMS) if DENSE[row].any()]
    assert max(min(vectors[row] @ vectors[n] for n in np.flatnonzero(DENSE[row])) for row in anchors) > 0


@pytest.mark.parametrize(("angle", "is_negative"), [(133.0, False), (137.0, True)], ids=str)
def test_margin_is_below_a_negative_similarity(store, monkeypatch, angle, is_negative):
    """The positive is at 130 degrees, cos = -0.643; with a margin of 0.1 the limit is -0.707, at 135 degrees."""
    degrees = [0.0, 130.0, angle]
    vectors = np.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees], np.float32)
    dense = np.zeros((3, 3))
    dense[0, 1] = 1
    set_limits(monkeypatch, (1, 2), 0.1)
    negatives, report = hard_negatives.mine(vectors, store(dense), DISTANCES["cosine"], np.random.default_rng(0))
    assert (2 in negatives[0]) == is_negative
    assert report == {
        "considered": 2,
        "known_positive": 1,
        "too_similar": int(not is_negative),
        "kept": int(is_negative),
    }


def test_selects_hard_negatives_at_random_if_there_are_too_many(store, monkeypatch):
    monkeypatch.setattr(hard_negatives, "MAX_NEGATIVES", 6)
    set_limits(monkeypatch, (1, 60), 0.0)
    vectors = vectors_of("cosine")
    expected, expected_report = naive(vectors, "cosine")
    selected = {anchor: set() for anchor in expected}
    rows = []
    for seed in range(40):
        negatives, report = mined(store, vectors, "cosine", seed)
        assert report == expected_report
        rows.append(negatives.tolist())
        for anchor, candidates in expected.items():
            numbers = set(negatives[anchor].tolist()) - {-1}
            assert numbers <= candidates
            assert len(numbers) == min(6, len(candidates))
            selected[anchor] |= numbers
    assert max(len(candidates) for candidates in expected.values()) > 6
    assert rows[0] != rows[1]
    assert rows[0] == mined(store, vectors, "cosine", 0).negatives.tolist()
    large = [anchor for anchor, candidates in expected.items() if len(candidates) > 6]
    assert sum(len(selected[anchor]) for anchor in large) > 0.9 * sum(len(expected[anchor]) for anchor in large)
