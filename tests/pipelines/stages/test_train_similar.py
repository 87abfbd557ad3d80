"""The train stage of the sense `similar`: which candidate it chooses, and what its release contains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recsys.evaluation.likeness
from pipelines.context.overrides import with_settings
from pipelines.context.run_context import RunContext
from pipelines.orchestration.stage_table import STAGES
from pipelines.prepare import stage as prepare
from pipelines.stages import train, train_similar
from recsys import Release
from recsys.config.loading import load_config, parse_config
from recsys.evaluation.likeness import AGREEMENT, Evidence
from recsys.model.fit_plan import similar_candidate_plan
from recsys.release.formats import TOWER
from recsys.testing import world
from tests.pipelines.stages.test_train import WITHIN, write_labeled_world

SHORT_WINDOW = "prepare.window=1"
"""Most pairs of a history are outside the window, so there are similar pairs."""


def likeness(agreement: float, half_width: float = 0.01) -> dict[str, Any]:
    return {AGREEMENT: agreement, "intervals": {AGREEMENT: [agreement - half_width, agreement + half_width]}}


def prepared_run(folder: Path, *settings: str) -> RunContext:
    context = RunContext.from_config(load_config(folder / "recsys.toml", [*world.QUICK, *settings]))
    prepare.prepare(context.config, context.run, context.inputs, context.progress)
    return context


def choose(context: RunContext, of_next: dict[str, Any] | None) -> train_similar.Choice:
    """Choose a candidate, given the likeness of `next`, or None if there is too little evidence."""
    num_items = context.run.manifest(prepare.STAGE)["num_items"]
    evidence = Evidence.of_held_out_users(train.load_split(context.run), num_items)
    with context.run.stage(train.STAGE) as (folder, manifest):
        if of_next:
            evidence.save(folder / train.EVIDENCE)
        manifest |= {"passes": {"pairs": 2, "histories": 1}}
        manifest |= {"evidence_items": len(evidence.items), "likeness": of_next or {}}
    run = context.run.of("similar")
    trained = context.run.manifest(train.STAGE)
    return train_similar._choose(context.config, run, trained, context.run.folder / "checkpoints", lambda *_: None)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Agreement of each candidate, instead of that of a fitted tower."""
    agreements: dict[str, float] = {}

    def measure(_: Any, run: Any, name: str, evidence: Evidence, *__: Any, **___: Any) -> dict[str, Any]:
        assert run.sense == "similar"
        assert len(evidence.items) > 0
        return {"passes": 3, "likeness": likeness(agreements[name]), "curve": []}

    monkeypatch.setattr(train_similar, "measure_candidate", measure)
    return agreements


@pytest.fixture
def enough_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The world has fewer items than a comparison needs."""
    monkeypatch.setattr(recsys.evaluation.likeness, "MIN_ITEMS", 10)


@pytest.mark.parametrize(("agreement", "best"), [(0.52, "similar_features"), (0.509, "next"), (0.4, "next")])
def test_candidate_is_chosen_only_if_it_is_above_the_interval_of_next(
    tmp_path: Path, measured: dict[str, float], agreement: float, best: str
) -> None:
    world.write(tmp_path)
    measured["similar_features"] = agreement
    choice = choose(prepared_run(tmp_path, SHORT_WINDOW), likeness(0.5))
    assert choice.best == best
    assert list(choice.candidates) == ["next", "similar_features"]
    assert choice.candidates["next"] == {"passes": 3, "likeness": likeness(0.5)}
    assert ("own space" in choice.reason) == (best != "next")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ([], "100% of the pairs of a history are within the window of next; agreement 0.2500"),
        ([SHORT_WINDOW, "similar.enabled=false"], "similar.enabled is off; agreement 0.2500"),
    ],
    ids=["short histories", "off"],
)
def test_next_is_the_only_candidate_without_pairs_of_similar(
    tmp_path: Path, measured: dict[str, float], settings: list[str], reason: str
) -> None:
    del measured
    world.write(tmp_path)
    choice = choose(prepared_run(tmp_path, *settings), likeness(0.25))
    assert (choice.best, list(choice.candidates)) == ("next", ["next"])
    assert choice.reason == f"one space serves both senses, because {reason}"


def test_reason_is_given_if_nothing_can_be_compared(tmp_path: Path, measured: dict[str, float]) -> None:
    del measured
    world.write(tmp_path / "small")
    write_labeled_world(tmp_path / "labeled", WITHIN)
    reasons = {
        "the users held out associate 35 items, fewer than 100": prepared_run(tmp_path / "small", SHORT_WINDOW),
        "labeled pairs say what is alike": prepared_run(tmp_path / "labeled"),
    }
    for reason, context in reasons.items():
        choice = choose(context, None)
        assert (choice.best, choice.candidates) == ("next", {})
        assert reason in choice.reason


def test_candidate_has_the_schedule_of_similar_and_next_keeps_its_own() -> None:
    similar = {"learning_rate": 0.02, "temperature": 0.3, "passes": 7}
    config = parse_config({"similar": similar, "train": {"temperature": 0.2, "batch_size": 5}})
    for name, id_dropout in (("similar", 0.0), ("similar_features", 0.3)):
        recipe = train_similar.candidate_config(config, name)
        assert (recipe.train.learning_rate, recipe.train.temperature, recipe.tower.id_dropout) == (
            0.02,
            0.3,
            id_dropout,
        )
        assert similar_candidate_plan(recipe).phases[0].passes == 7
        unchanged = {
            "train.learning_rate": config.train.learning_rate,
            "train.temperature": 0.2,
            "tower.id_dropout": 0.0,
        }
        assert with_settings(recipe, unchanged) == config


def test_evidence_is_of_the_held_out_users_before_their_test_targets(tmp_path: Path) -> None:
    world.write(tmp_path)
    context = prepared_run(tmp_path)
    split = train.load_split(context.run)
    num_items = context.run.manifest(prepare.STAGE)["num_items"]
    evidence = Evidence.of_held_out_users(split, num_items)
    users = np.zeros(num_items, int)
    for user, held_out in enumerate(split.held_out):
        history = split.sequences.items[split.sequences.offsets[user] : split.sequences.offsets[user + 1]]
        for item in set(history[:-1].tolist()):
            users[item] += held_out
    assert np.flatnonzero(evidence.judged).tolist() == np.flatnonzero(users >= 5).tolist()
    assert evidence.judged.any()


@pytest.mark.slow
@pytest.mark.usefixtures("enough_evidence")
def test_release_has_a_space_of_its_own_for_similar_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tower of `next` is said to be worse than it is; all towers of this world are perfect."""
    monkeypatch.setattr(train_similar, "is_better", lambda *_: True)
    world.write(tmp_path)
    context = RunContext.from_config(load_config(tmp_path / "recsys.toml", [SHORT_WINDOW, "train.passes=4"]))
    manifests = {name: stage(context) for name, stage in STAGES.items() if name != "promote"}
    trained = manifests["train-similar"]
    assert (trained["space"], trained["candidate"]) == ("similar", "similar_features")
    assert trained["passes"] == trained["candidates"]["similar_features"]["passes"] == len(trained["curve"])
    release = Release.load(manifests["publish"]["path"])
    assert set(release.spaces) == {"next", "similar"}
    assert not np.array_equal(release.space("next").vectors, release.space("similar").vectors)
    for sense in ("next", "similar"):
        neighbors = release.space(sense).engine.searcher.index.nearest(release.catalog.item_number("item-1-1"), 7)[0]
        assert {release.catalog.item_ids[item] for item in neighbors} == set(world.item_ids(1)) - {"item-1-1"}
    report = release.evaluation["likeness"]
    assert report["space"] == "similar"
    assert report["model"]["similar"][AGREEMENT] == trained["candidates"]["similar_features"]["likeness"][AGREEMENT]
    assert set(report["baselines"]) == set(release.evaluation["baselines"])


@pytest.mark.slow
@pytest.mark.usefixtures("enough_evidence")
def test_interrupted_stage_resumes_after_the_last_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process ends after the candidate, at the first pass of the final fit."""
    monkeypatch.setattr(train_similar, "is_better", lambda *_: True)
    world.write(tmp_path)
    context = RunContext.from_config(load_config(tmp_path / "recsys.toml", [*world.QUICK, SHORT_WINDOW]))
    for name in ("prepare", "train"):
        STAGES[name](context)
    passes: list[str] = []
    show = train_similar._FitProgress.__call__

    def interrupted(self: Any, *arguments: Any) -> None:
        show(self, *arguments)
        passes.append(self.name)
        if passes.count("final fit") == 1 and "interrupted" not in passes:
            passes.append("interrupted")
            raise KeyboardInterrupt

    monkeypatch.setattr(train_similar._FitProgress, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        STAGES["train-similar"](context)
    before = passes.count("similar_features")
    manifest = STAGES["train-similar"](context)
    assert before > 0
    assert passes.count("similar_features") == before
    assert passes.count("final fit") == 3 * manifest["passes"]  # with two for new items after each one over pairs
    assert manifest["candidates"].keys() == {"next", "similar_features"}
    assert not context.run.of("similar").path(train.STAGE, train.CHECKPOINTS).exists()


@pytest.mark.slow
def test_senses_share_one_space_without_evidence(tmp_path: Path) -> None:
    world.write(tmp_path)
    context = RunContext.from_config(load_config(tmp_path / "recsys.toml", world.QUICK))
    manifests = {name: stage(context) for name, stage in STAGES.items() if name != "promote"}
    assert (
        manifests["embed-similar"] == manifests["index-similar"] == manifests["calibrate-similar"] == {"space": "next"}
    )
    assert not context.run.of("similar").path(train.STAGE, TOWER).exists()
    release = Release.load(manifests["publish"]["path"])
    assert set(release.spaces) == {"next"}
    assert release.evaluation["likeness"]["model"]["next"].keys() == {}.keys()
    assert "fewer than 100" in release.evaluation["likeness"]["reason"]


def test_tower_that_relies_on_features_is_a_candidate_only_for_sparse_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write(tmp_path)
    split = train.load_split(prepared_run(tmp_path).run)
    items = split.sequences.items[split.training_mask("test")]
    mean = len(items) / len(set(items.tolist()))
    monkeypatch.setattr(train_similar, "SPARSE", mean)
    assert train_similar.candidate_name(split) == "similar"
    monkeypatch.setattr(train_similar, "SPARSE", mean + 0.1)
    assert train_similar.candidate_name(split) == "similar_features"
