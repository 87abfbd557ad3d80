"""The figures of an evaluation for readers: models with evidence, and every baseline that beats the tower."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.reports.figures import better_baselines, likeness_models, model_name

NDCG, AGREEMENT, GROUPS = "ndcg_at_20", "agreement_at_10", "group_recall_at_10"


def evaluation(**likeness: Any) -> dict[str, Any]:
    """Return an evaluation in which no baseline is better."""
    return {
        "model": {NDCG: 0.09},
        "baselines": {"ease": {NDCG: 0.08}, "popularity": {NDCG: 0.01}},
        "history": {"model": {NDCG: 0.2}, "baselines": {"ease": {NDCG: 0.1}, "popularity": {NDCG: 0.02}}},
        "likeness": {
            "space": "similar",
            "model": {"next": {AGREEMENT: 0.5, GROUPS: 0.3}, "similar": {AGREEMENT: 0.7, GROUPS: 0.4}},
            "baselines": {"popularity": {AGREEMENT: 0.1, GROUPS: 0.1}, "ease": {AGREEMENT: 0.6, GROUPS: 0.35}},
            **likeness,
        },
    }


def test_a_tower_that_is_best_needs_no_sentence() -> None:
    assert better_baselines(evaluation()) == []


def test_each_figure_names_the_baselines_that_are_better_with_all_values() -> None:
    evaluated = evaluation()
    evaluated["baselines"]["windowed_item_knn"] = {NDCG: 0.0912}
    evaluated["history"]["baselines"] |= {"a": {NDCG: 0.21}, "b": {NDCG: 0.25}, "c": {NDCG: 0.2}, "d": {NDCG: 0.22}}
    evaluated["likeness"]["baselines"]["ease"][GROUPS] = 0.75
    assert better_baselines(evaluated) == [
        "Windowed ItemKNN (0.0912) is better than the tower (0.0900) at predicting the next item from the last.",
        (
            "B (0.2500), d (0.2200) and a (0.2100) are better than the tower (0.2000) at predicting the next item from "
            "a history."
        ),
        "EASE (0.7500) is better than the tower (0.4000) at finding the items of a group.",
    ]


def test_likeness_is_compared_with_the_space_that_answers_similar() -> None:
    evaluated = evaluation(space="next", model={"next": {AGREEMENT: 0.5, GROUPS: 0.4}})
    (sentence,) = better_baselines(evaluated)
    assert sentence == "EASE (0.6000) is better than the tower (0.5000) at agreeing with other users."


def test_figures_without_evidence_or_queries_are_not_compared() -> None:
    evaluated = evaluation(space="next", model={"next": {}}, baselines={"ease": {}, "popularity": {}})
    evaluated |= {"model": {}, "baselines": {"ease": {}}}
    assert better_baselines(evaluated) == []
    assert likeness_models(evaluated["likeness"]) == {}


def test_models_are_ordered_by_sense_and_agreement() -> None:
    assert list(likeness_models(evaluation()["likeness"])) == ["similar", "next", "ease", "popularity"]
    shared = evaluation(space="next", model={"next": {GROUPS: 0.5}}, baselines={"ease": {GROUPS: 0.6}})
    assert list(likeness_models(shared["likeness"])) == ["next", "ease"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("windowed_item_knn", "windowed ItemKNN"), ("ease", "EASE"), ("similar", "tower, similar")],
)
def test_models_have_the_names_of_the_documentation(name: str, expected: str) -> None:
    assert model_name(name) == expected
