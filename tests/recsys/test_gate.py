import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.catalogue import Catalogue
from recsys.gate import Check, Questions, checks, score
from recsys.release import Manifest, Release


class Canned:
    """Answers by item number from a table."""

    def __init__(self, answers):
        self.answers = answers

    def answer(self, queries, k):
        rows = [(self.answers.get(number, []) + [-1] * k)[:k] for number in queries.items[:, 0].tolist()]
        return np.array(rows, np.int32).reshape(len(queries), k)


def release(answers, *, items="abcdefgh", recall=0.99):
    """A release that answers {item id: its neighbours' ids} from memory."""
    item_ids = sorted(items)
    catalogue = Catalogue(pl.DataFrame({"item_id": item_ids, "title": item_ids}))
    number = {item_id: row for row, item_id in enumerate(item_ids)}
    numbered = {number[query]: [number[other] for other in others] for query, others in answers.items()}
    manifest = Manifest.model_construct(index_recall=recall)
    return Release(Path("nowhere"), manifest, catalogue, np.empty((len(item_ids), 2), np.float32), Canned(numbered))


QUESTIONS = Questions(["a", "b", "c", "d"], ["e", "f", "g", "h"])
SECOND = 1 / math.log2(3)


def test_score_is_asked_by_item_id():
    figures = score(release({"a": "e", "b": "cf", "c": "d"}), QUESTIONS)
    assert figures["ndcg_at_20"] == pytest.approx((1 + SECOND) / 4)
    assert figures["hr_at_20"] == pytest.approx(0.5)


@pytest.mark.parametrize("missing", ["b", "f"], ids=["query", "target"])
def test_a_question_about_an_unknown_item_is_a_miss(missing):
    """It still counts among the questions: the others do not make up for it."""
    items = "abcdefgh".replace(missing, "")
    answers = {"a": "e", "c": "g", "d": "h"}
    figures = score(release(answers, items=items), QUESTIONS)
    assert figures["hr_at_10"] == pytest.approx(3 / 4)
    assert figures["mrr_at_10"] == pytest.approx(3 / 4)


def test_an_unknown_item_is_not_mistaken_for_padding():
    """Unknown targets and padding both have a number below 0."""
    figures = score(release({}, items="abcd"), QUESTIONS)
    assert set(figures.values()) == {0.0}


def test_the_first_release_has_to_show_its_recall_only():
    results = checks(release({}, recall=0.96), None, QUESTIONS, recall_floor=0.95, tolerance=0.02)
    assert [(check.name, check.value, check.limit, check.passed) for check in results] == [
        ("index_recall", 0.96, 0.95, True)
    ]


def test_without_questions_nothing_shows_that_a_challenger_is_not_worse():
    results = checks(release({}), release({}), Questions([], []), recall_floor=0.95, tolerance=0.02)
    assert [(check.name, check.passed) for check in results] == [("index_recall", True), ("held_out_questions", False)]


@pytest.mark.parametrize(("tolerance", "passed"), [(0.0, False), (0.18, False), (0.19, True), (1.0, True)], ids=str)
def test_a_challenger_may_be_worse_by_the_tolerance(tolerance, passed):
    """The champion finds two targets first; the challenger one of them second: worse by 18.5%."""
    champion, challenger = release({"a": "e", "b": "f"}), release({"a": "e", "b": "cf"})
    *_, check = checks(challenger, champion, QUESTIONS, recall_floor=0.95, tolerance=tolerance)
    assert check.name == "ndcg_at_20"
    assert check.value == pytest.approx((1 + SECOND) / 4)
    assert check.limit == pytest.approx((1 - tolerance) * 2 / 4)
    assert check.passed is passed


def test_as_good_as_the_champion_is_good_enough():
    same = {"a": "e", "b": "cf"}
    results = checks(release(same), release(same), QUESTIONS, recall_floor=0.95, tolerance=0.0)
    assert all(check.passed for check in results)


def test_items_that_the_champion_does_not_hold_count_against_the_champion():
    champion = release({"a": "e"}, items="ae")
    challenger = release({"a": "e", "b": "f"})
    *_, check = checks(challenger, champion, QUESTIONS, recall_floor=0.95, tolerance=0.0)
    assert (check.limit, check.value) == (pytest.approx(1 / 4), pytest.approx(2 / 4))
    *_, back = checks(champion, challenger, QUESTIONS, recall_floor=0.95, tolerance=0.0)
    assert not back.passed


def test_a_recall_below_the_floor_fails():
    (check,) = checks(release({}, recall=0.94), None, QUESTIONS, recall_floor=0.95, tolerance=0.0)
    assert not check.passed


def test_no_number_never_passes():
    assert not Check("index_recall", math.nan, 0.0).passed
    assert not Check("index_recall", 1.0, math.nan).passed


@pytest.mark.parametrize(("value", "verdict"), [(0.5, "passed"), (0.4999, "failed")])
def test_a_check_says_its_value_limit_and_verdict(value, verdict):
    text = str(Check("ndcg_at_20", value, 0.5))
    assert f"{value:.4f}" in text
    assert "0.5000" in text
    assert text.endswith(verdict)
