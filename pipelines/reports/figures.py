"""Figures of an evaluation as people read them: the likeness of all models, and the baselines that beat the tower."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recsys.evaluation.likeness import AGREEMENT, K
from recsys.evaluation.metrics import TARGET_METRIC

LIKENESS = {
    AGREEMENT: "agreement with other users",
    f"group_recall_at_{K}": "recall of item groups",
    f"column_agreement_at_{K}": "agreement of columns",
}
"""Metrics of likeness that compare neighbors with evidence -> title."""
NAMES = {"similar": "tower, similar", "next": "tower, next", "ease": "EASE", "co_occurrence": "co-occurrence"}

Report = Mapping[str, Any]


def model_name(name: str) -> str:
    """Return the name of a model or a baseline for readers."""
    return NAMES.get(name, name.replace("_", " ").replace("item knn", "ItemKNN"))


def likeness_models(likeness: Report) -> dict[str, Report]:
    """Return the likeness of each model with evidence: `similar`, `next`, and the baselines by agreement.

    Args:
        likeness: figures of `pipelines.stages.likeness.LikenessMeasurement.measure`.
    """
    towers = {sense: likeness["model"][sense] for sense in ("similar", "next") if sense in likeness["model"]}
    baselines = sorted(likeness["baselines"].items(), key=lambda named: -named[1].get(AGREEMENT, 0.0))
    return {name: report for name, report in [*towers.items(), *baselines] if report}


def better_baselines(evaluation: Report) -> list[str]:
    """Return a sentence for each headline figure in which baselines are better than the tower.

    Args:
        evaluation: manifest of the stage `evaluate`.
    """
    sentences = []
    for task, metric, tower, baselines in _comparisons(evaluation):
        if metric not in tower:
            continue
        values = {name: report[metric] for name, report in baselines.items() if report[metric] > tower[metric]}
        names = [f"{model_name(name)} ({values[name]:.4f})" for name in sorted(values, key=lambda name: -values[name])]
        if names:
            subject = " and ".join([*([", ".join(names[:-1])] if len(names) > 1 else []), names[-1]])
            verb = "are" if len(names) > 1 else "is"
            sentence = f"{subject} {verb} better than the tower ({tower[metric]:.4f}) at {task}."
            sentences.append(sentence[0].upper() + sentence[1:])
    return sentences


def _comparisons(evaluation: Report) -> Iterator[tuple[str, str, Report, Mapping[str, Report]]]:
    """Yield a task with its metric, the figures of the tower, and those of the baselines."""
    history, likeness = evaluation["history"], evaluation["likeness"]
    yield "predicting the next item from the last", TARGET_METRIC, evaluation["model"], evaluation["baselines"]
    yield "predicting the next item from a history", TARGET_METRIC, history["model"], history["baselines"]
    tasks = ("agreeing with other users", "finding the items of a group", "finding items with like columns")
    for task, metric in zip(tasks, LIKENESS, strict=True):
        yield task, metric, likeness["model"][likeness["space"]], likeness["baselines"]
