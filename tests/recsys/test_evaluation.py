import math

import numpy as np
import pytest

from recsys.evaluation import evaluate, metrics, ranks
from recsys.exact import ExactIndex
from recsys.splitting import Holdout


class Canned:
    """Answers from a table, and remembers what it was asked."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    def neighbours(self, numbers, k):
        self.asked.append((numbers.tolist(), k))
        rows = [(self.answers[number] + [-1] * k)[:k] for number in numbers.tolist()]
        return np.array(rows, np.int32).reshape(len(numbers), k)


def holdout(*questions):
    queries, targets = zip(*questions, strict=True) if questions else ((), ())
    return Holdout(np.array(queries, np.int32), np.array(targets, np.int32))


def naive(positions):
    """One user at a time; a position is a rank from 1, or None for a miss."""
    figures = {}
    for k in (10, 20):
        gains = {"hr": 0.0, "ndcg": 0.0, "mrr": 0.0}
        for position in positions:
            if position is not None and position <= k:
                gains["hr"] += 1
                gains["ndcg"] += 1 / math.log2(1 + position)
                gains["mrr"] += 1 / position
        figures |= {f"{name}_at_{k}": gain / len(positions) for name, gain in gains.items()}
    return figures


def test_ranks_are_the_places_of_the_targets():
    model = Canned({4: [7, 1, 2], 9: [1, 0, 7], 2: []})
    assert ranks(model, holdout((9, 7), (4, 7), (4, 2), (2, 1), (9, 5)), k=3).tolist() == [2, 0, 2, 3, 3]


def test_each_query_is_asked_once():
    model = Canned({4: [7], 9: [1]})
    ranks(model, holdout((9, 7), (4, 7), (9, 1), (9, 7)), k=3)
    assert model.asked == [([4, 9], 3)]


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (0, (1, 1, 1, 1, 1, 1)),
        (2, (1, 1, 0.5, 0.5, 1 / 3, 1 / 3)),
        (9, (1, 1, 1 / math.log2(11), 1 / math.log2(11), 0.1, 0.1)),
        (10, (0, 1, 0, 1 / math.log2(12), 0, 1 / 11)),
        (19, (0, 1, 0, 1 / math.log2(21), 0, 1 / 20)),
        (20, (0, 0, 0, 0, 0, 0)),
    ],
    ids=lambda value: f"rank {value}" if isinstance(value, int) else "",
)
def test_metrics_of_one_question(rank, expected):
    figures = metrics(np.array([rank]))
    names = ["hr_at_10", "hr_at_20", "ndcg_at_10", "ndcg_at_20", "mrr_at_10", "mrr_at_20"]
    assert [figures[name] for name in names] == pytest.approx(list(expected))
    assert len(figures) == 6


def test_evaluate_is_the_mean_over_the_questions():
    rng = np.random.default_rng(3)
    answers = {
        number: rng.permutation([other for other in range(40) if other != number]).tolist() for number in range(40)
    }
    questions = [(int(query), int(target)) for query, target in rng.integers(0, 40, (61, 2)) if query != target]
    places = [answers[query].index(target) + 1 for query, target in questions]
    assert evaluate(Canned(answers), holdout(*questions)) == pytest.approx(naive(places))


def test_evaluate_asks_an_index_like_anything_else():
    """On a circle, 30 degrees apart: the neighbours are the nearest by angle."""
    angles = np.radians([0, 30, 70, 120])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    figures = evaluate(ExactIndex(vectors), holdout((0, 1), (0, 3), (2, 3)))
    assert figures == pytest.approx(naive([1, 3, 2]))


def test_padding_is_no_hit():
    assert evaluate(Canned({1: []}), holdout((1, 0)))["hr_at_20"] == 0


def test_without_questions_there_are_no_figures():
    assert evaluate(Canned({}), holdout()) == {}
