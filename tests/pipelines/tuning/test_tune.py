"""The search on a made-up landscape: where it begins, how it goes on, what it leaves; and once with true training.

Training is stood in for by a function of the settings, so that the right answer is known and a trial is quick.
`prepare`, Optuna and MLflow are the true ones.
"""

from __future__ import annotations

import math
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.context.overrides import with_settings
from pipelines.context.run_context import RunContext
from pipelines.tuning import objectives
from pipelines.tuning import tune as tuning
from pipelines.tuning.prepared_data import MAX_FOLDERS
from pipelines.tuning.search_space import Choices, NumberRange, SearchSpace
from recsys.config.loading import load_config
from recsys.config.sections import Config, Span, TuneConfig
from recsys.config.senses import SENSES, Sense
from recsys.data.splits import Split
from recsys.errors import ConfigError, StageError
from recsys.model.fit_plan import FitPlan, NewItemPhase
from recsys.release.runs import Run
from recsys.testing import world
from tests.pipelines.tuning.conftest import Time

RANGES = {
    "train.temperature": {"low": 0.05, "high": 0.25, "log": True},
    "tower.dimension": {"low": 8, "high": 16},
    "train.mining": ["hard", "soft_margin"],
}
BEST_TEMPERATURE = 0.2
PASSES = 8


def landscape(config: Config) -> float:
    """The value of settings: the nearer the temperature is to its best, the better."""
    return 0.5 - abs(math.log(config.train.temperature / BEST_TEMPERATURE)) / 10 + config.tower.dimension / 1_000


class Killed(BaseException):
    """Stands in for SIGKILL: nothing that handles errors may hide it."""


class Training:
    """In place of training: every pass comes nearer to the value of the settings, and takes ten seconds."""

    def __init__(self, clock: Time) -> None:
        self.clock = clock
        self.trained: list[Config] = []
        self.folders: list[Path] = []
        self.passes: list[int] = []
        self.rising = True
        self.fail: Callable[[Config], object] = lambda _: None

    def fit_tower(self, config: Config, run: Run, plan: FitPlan, on_pass: Any) -> Any:
        assert plan.target == "validation"
        assert run.done("prepare")
        self.trained.append(config)
        self.folders.append(run.folder)
        self.passes.append(0)
        passes = {phase.name: phase.passes for phase in plan.phases if not isinstance(phase, NewItemPhase)}
        pairs = passes["pairs"] if self.rising else 1 + config.train.patience
        for number in range(1, pairs + passes.get("histories", 0) + 1):
            self.clock.seconds += 10.0
            self.passes[-1] = number
            self.fail(config)
            score = landscape(config) * (1 - 0.5 ** (number if self.rising else 1))
            figures = {"loss": 1.0, "validation_ndcg_at_20": score - 0.1, "validation_score": score}
            on_pass("pairs" if number <= pairs else "histories", number, figures)
        return SimpleNamespace(embeddings=landscape(config))

    def measure_validation(self, _: Config, __: Split, value: float) -> dict[str, Any]:
        figures = {"last_item": {"ndcg_at_20": value - 0.1}, "history": {"ndcg_at_20": value + 0.1}}
        return {"recency": 0.5, "validation": figures}


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch, clock: Time) -> Training:
    stand_in = Training(clock)
    monkeypatch.setattr(objectives, "fit_tower", stand_in.fit_tower)
    monkeypatch.setattr(objectives, "measure_validation", stand_in.measure_validation)
    return stand_in


@pytest.fixture
def config(tmp_path: Path, empty_mlflow: Path) -> Config:
    """Few interactions, since every trial may prepare anew."""
    (tmp_path / "workspace").mkdir()
    shutil.copy(empty_mlflow, tmp_path / "workspace")
    rows = ["user_id,item_id,timestamp", *(f"u{n % 5},i{n % 7},{n}" for n in range(40))]
    (tmp_path / "log.csv").write_text("\n".join(rows))
    (tmp_path / "recsys.toml").write_text('[data]\ninteractions = "log.csv"\n')
    return change(
        load_config(
            tmp_path / "recsys.toml", [f"train.passes={PASSES}", "train.history_passes=0", "tower.dimension=10"]
        ),
        ranges=RANGES, trials=6, minutes=1_000.0,
    )  # fmt: skip


def change(config: Config, **values: Any) -> Config:
    return with_settings(config, {f"tune.{key}": value for key, value in values.items()})


def folder_of(config: Config) -> Path:
    (folder,) = (config.workspace / "tuning").iterdir()
    return folder


def tune(context: RunContext, **options: Any) -> dict[str, Any]:
    """Tune with the parts of a run context."""
    tracker = context.tracking.tracker
    return tuning.tune(context.config, context.run, context.inputs, context.progress, tracker, **options)


def children(context: RunContext, tuning_id: str) -> tuple[Any, list[Any]]:
    """The MLflow run of a tuning, and those below it, oldest first."""
    client = context.tracking.tracker.client
    experiment = client.get_experiment_by_name("recsys").experiment_id
    (parent,) = client.search_runs([experiment], f"tags.`recsys.run_id` = '{tuning_id}'")
    result = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    return parent, sorted(result, key=lambda run: int(run.info.run_name.removeprefix("trial ")))


# --- the search


@pytest.mark.slow
def test_first_trial_is_the_unchanged_config(config: Config, training: Training, clock: Time) -> None:
    result = tune(RunContext.from_config(config), clock=clock)
    assert training.trained[0] == config
    assert result["base_value"] == pytest.approx(landscape(config))


@pytest.mark.slow
def test_returns_the_best_trial(config: Config, training: Training, clock: Time) -> None:
    result = tune(RunContext.from_config(config), clock=clock)
    values = [landscape(tried) for tried in training.trained]
    assert result["best_value"] == pytest.approx(max(values))
    assert result["best_value"] > result["base_value"]
    assert landscape(with_settings(config, result["settings"])) == pytest.approx(max(values))
    assert result["trials"] == len(values) == 6
    assert result["seconds"] == 10.0 * sum(training.passes)


@pytest.mark.slow
def test_many_trials_approach_the_optimum(config: Config, training: Training, clock: Time) -> None:
    result = tune(RunContext.from_config(change(config, trials=16)), clock=clock)
    assert result["settings"]["train.temperature"] == pytest.approx(BEST_TEMPERATURE, rel=0.15)
    assert len(training.trained) == result["trials"]


@pytest.mark.slow
def test_worse_settings_are_not_returned(
    config: Config, training: Training, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "landscape", lambda _: 0.25)
    result = tune(RunContext.from_config(config), clock=clock)
    assert (result["settings"], result["best_value"], result["base_value"]) == ({}, 0.25, 0.25)
    assert len(training.trained) == 6
    assert tomllib.loads(Path(result["path"]).read_text()) == {}


@pytest.mark.slow
def test_written_file_has_the_changed_settings_and_gives_the_best_config(
    config: Config, training: Training, clock: Time
) -> None:
    result = tune(RunContext.from_config(config), clock=clock)
    tables = tomllib.loads(Path(result["path"]).read_text())
    written = {f"{table}.{key}": value for table, keys in tables.items() for key, value in keys.items()}
    assert written == result["settings"]
    best = with_settings(config, written)
    assert best == max(training.trained, key=landscape)
    base = config.model_dump()
    assert all(base[name.split(".")[0]][name.split(".")[1]] != value for name, value in written.items())


@pytest.mark.slow
def test_suggested_values_have_their_type_and_range_and_few_digits(
    config: Config, training: Training, clock: Time
) -> None:
    tune(RunContext.from_config(change(config, trials=15)), clock=clock)
    for tried in training.trained[1:]:
        assert 0.05 <= tried.train.temperature <= 0.25
        assert float(f"{tried.train.temperature:.4g}") == tried.train.temperature
        assert type(tried.tower.dimension) is int
        assert 8 <= tried.tower.dimension <= 16
        assert tried.train.mining in ("hard", "soft_margin", "semi_hard")
    assert len({tried.tower.dimension for tried in training.trained}) > 2


@pytest.mark.slow
def test_seed_determines_the_trials(config: Config, training: Training, clock: Time, tmp_path: Path) -> None:
    def tried(workspace: str, seed: int) -> list[float]:
        training.trained.clear()
        (tmp_path / workspace).mkdir()
        shutil.copy(config.workspace / "mlflow.db", tmp_path / workspace)
        moved = {"data.workspace": str(tmp_path / workspace), "train.seed": seed}
        tune(RunContext.from_config(with_settings(change(config, trials=3), moved)), clock=clock)
        return [each.train.temperature for each in training.trained]

    first = tried("first", 1)
    assert tried("second", 1) == first
    assert tried("third", 2) != first


@pytest.mark.slow
def test_equal_settings_are_trained_once_and_an_exhausted_search_ends(
    config: Config, training: Training, clock: Time
) -> None:
    """3 ways to mine, the config's own among them, by 2 to fuse."""
    few = change(config, ranges={"train.mining": ["hard", "soft_margin"], "tower.fusion": ["gating"]}, trials=200)
    result = tune(RunContext.from_config(few), clock=clock)
    tried = {(each.train.mining, each.tower.fusion) for each in training.trained}
    assert len(training.trained) == len(tried) == result["trials"] == 6


# --- time


@pytest.mark.slow
def test_running_trial_stops_after_its_pass_at_the_time_limit(config: Config, training: Training, clock: Time) -> None:
    """270 s: three trials of 80 s, and three passes of a fourth."""
    result = tune(RunContext.from_config(change(config, trials=100, minutes=4.5)), clock=clock)
    assert training.passes == [PASSES, PASSES, PASSES, 3]
    assert result["seconds"] == 270.0


def test_first_trial_is_completed_despite_the_time_limit(config: Config, training: Training, clock: Time) -> None:
    result = tune(RunContext.from_config(change(config, minutes=0.1)), clock=clock)
    assert training.passes == [PASSES]
    assert result["base_value"] == result["best_value"]


@pytest.mark.slow
def test_sessions_share_the_time_limit_and_it_can_be_raised(config: Config, training: Training, clock: Time) -> None:
    first = tune(RunContext.from_config(change(config, trials=100, minutes=160 / 60)), clock=clock)
    assert len(training.passes) == 2
    clock.seconds += 100_000.0  # time between sessions
    again = tune(RunContext.from_config(change(config, trials=100, minutes=160 / 60)), clock=clock)
    assert again == first
    assert len(training.passes) == 2
    more = tune(RunContext.from_config(change(config, trials=100, minutes=320 / 60)), clock=clock)
    assert (more["id"], more["trials"], training.passes) == (first["id"], 4, [PASSES] * 4)


@pytest.mark.slow
def test_poor_trials_are_pruned(
    config: Config, training: Training, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After patience and enough finished trials, and they count as tried."""
    monkeypatch.setitem(globals(), "landscape", lambda _: 0.5 if len(training.trained) <= 5 else 0.1)
    context = RunContext.from_config(change(config, trials=8))
    result = tune(context, clock=clock)
    assert training.passes == [*[PASSES] * 5, *[config.train.patience] * 3]
    _, trials = children(context, result["id"])
    assert "worse than the median" in trials[-1].data.tags["recsys.outcome"]


@pytest.mark.slow
@pytest.mark.parametrize(("rising", "compared"), [(True, PASSES), (False, 5)], ids=["to the last", "out of patience"])
def test_passes_over_histories_are_not_compared_with_passes_over_pairs(
    config: Config, training: Training, clock: Time, rising: bool, compared: int
) -> None:
    """They come after a different number of passes in each trial; here after 4 that are no better than the first."""
    training.rising = rising
    context = RunContext.from_config(
        with_settings(config, {"train.history_passes": 3, "train.patience": 4, "tune.trials": 2})
    )
    result = tune(context, clock=clock)
    assert training.passes == [compared + 3] * 2
    study = tuning.Study(
        folder_of(config), SearchSpace.from_config(context.config, context.run.sense), context.config
    ).study
    assert [list(trial.intermediate_values) for trial in study.trials] == [list(range(1, compared + 1))] * 2
    _, trials = children(context, result["id"])
    curve = context.tracking.tracker.client.get_metric_history(trials[0].info.run_id, "train_validation_ndcg_at_20")
    assert len(curve) == compared + 3


# --- stopped and gone on with


@pytest.mark.slow
def test_killed_search_resumes_without_repeating_trials(config: Config, training: Training, clock: Time) -> None:
    def kill(_: Config) -> None:
        if len(training.trained) == 4 and training.passes[-1] == 3:
            raise Killed

    training.fail = kill
    context = RunContext.from_config(config)
    with pytest.raises(Killed):
        tune(context, clock=clock)
    before = list(training.trained)
    training.fail = lambda _: None
    result = tune(RunContext.from_config(config), clock=clock)
    assert training.trained[:4] == before
    assert len(training.trained) == 4 + 3
    assert len({each.fingerprint() for each in training.trained}) == 7
    assert result["trials"] == 6
    assert result["seconds"] == 10.0 * PASSES * 6
    parent, trials = children(context, result["id"])
    assert parent.info.status == "FINISHED"
    assert [run.info.status for run in trials] == [*["FINISHED"] * 3, "KILLED", *["FINISHED"] * 3]
    assert trials[3].data.tags["recsys.outcome"] == "killed"


@pytest.mark.slow
def test_killed_first_trial_is_repeated(config: Config, training: Training, clock: Time) -> None:
    def kill(_: Config) -> None:
        raise Killed

    training.fail = kill
    with pytest.raises(Killed):
        tune(RunContext.from_config(config), clock=clock)
    training.fail = lambda _: None
    result = tune(RunContext.from_config(config), clock=clock)
    assert training.trained[1] == config
    assert result["base_value"] == pytest.approx(landscape(config))


@pytest.mark.slow
def test_search_resumes_after_a_partial_line_and_a_stale_lock(config: Config, training: Training, clock: Time) -> None:
    tune(RunContext.from_config(change(config, trials=2)), clock=clock)
    journal = folder_of(config) / "study.log"
    with journal.open("a") as file:
        file.write('{"op_code":4,"wor')
    (journal.parent / "study.log.lock").symlink_to(journal)
    result = tune(RunContext.from_config(change(config, trials=4)), clock=clock)
    assert result["trials"] == len(training.trained) == 4
    assert tune(RunContext.from_config(change(config, trials=4)), clock=clock) == result


@pytest.mark.slow
def test_finished_search_returns_its_result_without_training(
    config: Config, training: Training, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tune(RunContext.from_config(config), clock=clock)
    trained = len(training.trained)
    monkeypatch.setattr("pipelines.tuning.prepared_data.prepare", None)
    Path(first["path"]).unlink()
    assert tune(RunContext.from_config(config), clock=clock) == first
    assert len(training.trained) == trained
    assert Path(first["path"]).exists()


@pytest.mark.slow
@pytest.mark.usefixtures("training")
def test_other_data_settings_or_ranges_start_another_search(config: Config, clock: Time) -> None:
    def id_of(changed: Config) -> Any:
        return tune(RunContext.from_config(changed), clock=clock)["id"]

    short = change(config, trials=1)
    first = id_of(short)
    assert id_of(change(short, minutes=7.0)) == first
    ids = [
        first,
        id_of(with_settings(short, {"train.patience": 5})),
        id_of(change(short, ranges={"train.margin": [3]})),
    ]
    with Path(config.data.interactions).open("a") as file:
        file.write("\nu1,i1,99")
    ids.append(id_of(short))
    assert len(set(ids)) == 4


@pytest.mark.slow
def test_rejects_a_second_process_on_the_same_search(config: Config, training: Training, clock: Time) -> None:
    context = RunContext.from_config(config)
    with (
        tuning.tuning_run(context.config, context.run).locked(),
        pytest.raises(StageError, match="Another process is already working on run"),
    ):
        tune(context, clock=clock)
    assert training.trained == []


# --- failures


@pytest.mark.slow
def test_failed_trial_is_reported_and_the_search_continues(
    config: Config, training: Training, clock: Time, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")

    def diverge(_: Config) -> None:
        if len(training.trained) == 3:
            raise StageError("the loss must be finite")

    training.fail = diverge
    context = RunContext.from_config(config, tuning.Progress())
    result = tune(context, clock=clock)
    assert (result["trials"], len(training.trained)) == (6, 6)
    _, trials = children(context, result["id"])
    assert trials[2].info.status == "FAILED"
    assert trials[2].data.tags["recsys.outcome"] == "failed: the loss must be finite"
    assert "failed: the loss must be finite" in capsys.readouterr().err


@pytest.mark.slow
def test_search_continues_if_the_unchanged_config_fails(config: Config, training: Training, clock: Time) -> None:
    def diverge(tried: Config) -> None:
        if tried == config:
            raise StageError("the loss must be finite")

    training.fail = diverge
    result = tune(RunContext.from_config(config), clock=clock)
    assert result["base_value"] is None
    assert result["settings"]
    assert "unknown before" in Path(result["path"]).read_text()


@pytest.mark.slow
def test_search_of_failed_trials_ends_with_an_error_and_can_be_repeated(
    config: Config, training: Training, clock: Time
) -> None:
    def always(_: Config) -> None:
        raise StageError("no tower for anybody")

    training.fail = always
    context = RunContext.from_config(config)
    with pytest.raises(StageError, match="no tower for anybody"):
        tune(context, clock=clock)
    assert len(training.trained) == tuning.MAX_FAILURES
    training.fail = lambda _: None
    result = tune(RunContext.from_config(config), clock=clock)
    assert training.trained[3] == config
    assert result["base_value"] == pytest.approx(landscape(config))


def test_rejects_data_without_validation_queries(config: Config, training: Training, clock: Time) -> None:
    Path(config.data.interactions).write_text("user_id,item_id,timestamp\nu1,i1,1\nu1,i2,2\nu2,i1,3\nu2,i2,4")
    with pytest.raises(StageError, match="tuning needs validation targets"):
        tune(RunContext.from_config(config), clock=clock)
    assert training.trained == []


# --- MLflow and the disk


@pytest.mark.slow
def test_trials_are_nested_mlflow_runs_with_settings_and_metrics(
    config: Config, training: Training, clock: Time
) -> None:
    context = RunContext.from_config(config)
    result = tune(context, clock=clock)
    parent, trials = children(context, result["id"])
    assert (parent.info.run_name, parent.info.status) == (f"tuning {result['id']}", "FINISHED")
    assert parent.data.metrics == pytest.approx(
        {"best_value": result["best_value"], "base_value": result["base_value"]}
    )
    best = {key.removeprefix("best."): value for key, value in parent.data.tags.items() if key.startswith("best.")}
    assert best == {name: str(value) for name, value in ({**start(config), **result["settings"]}).items()}
    assert [run.info.run_name for run in trials] == [f"trial {number}" for number in range(6)]
    for run, tried in zip(trials, training.trained, strict=True):
        assert run.data.params == {name: str(value) for name, value in start(tried).items()}
        assert run.data.metrics["value"] == pytest.approx(landscape(tried))
        assert run.data.metrics["validation_last_item_ndcg_at_20"] == pytest.approx(landscape(tried) - 0.1)
    curve = context.tracking.tracker.client.get_metric_history(trials[0].info.run_id, "train_validation_ndcg_at_20")
    assert [point.step for point in curve] == list(range(1, PASSES + 1))


def start(config: Config) -> dict[str, Any]:
    return {name: getattr(getattr(config, name.split(".")[0]), name.split(".")[1]) for name in RANGES}


@pytest.mark.slow
def test_trials_with_equal_prepare_settings_share_a_folder_that_is_removed(
    config: Config, training: Training, clock: Time
) -> None:
    ranges = {"prepare.directed": [True], "train.mining": ["hard", "soft_margin"]}
    tune(RunContext.from_config(change(config, ranges=ranges)), clock=clock)
    both = {tried.prepare.directed: folder for tried, folder in zip(training.trained, training.folders, strict=True)}
    assert [both[tried.prepare.directed] for tried in training.trained] == training.folders
    assert len(set(both.values())) == len(both) == 2
    assert len(training.folders) > 2
    left = {path.name for path in folder_of(config).iterdir()}
    assert left == {"study.log", "best.toml", ".lock"}


@pytest.mark.slow
def test_number_of_prepared_folders_is_limited(config: Config, training: Training, clock: Time) -> None:
    most = []
    training.fail = lambda _: most.append(len(list(folder_of(config).glob("prepared-*"))))
    tune(
        RunContext.from_config(change(config, ranges={"prepare.decay": {"low": 0.1, "high": 2.0}}, trials=8)),
        clock=clock,
    )
    assert len(set(training.folders)) == 8
    assert max(most) == MAX_FOLDERS


# --- ranges


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({}, "tune.ranges must name settings to search"),
        ({"temperature": [0.1]}, "named table.key. Received: 'temperature'"),
        ({"train.temprature": [0.1]}, "Did you mean 'train.temperature'?"),
        ({"trian.temperature": [0.1]}, "Did you mean 'train'?"),
        ({"train.half_life_days": [7.0]}, "Did you mean 'prepare.half_life_days'?"),
        *[
            ({name: [1]}, f"change the value of a trial. Received: {name}")
            for name in ("data.items", "tracking.model", "beam.workers", "serve.port", "tune.trials", "index.n_trees",
                         "evaluate.users", "resources.memory_mb", "items.title", "export.k")
        ],
        ({"train.seed": [1, 2]}, "train.seed cannot be tuned: differences between seeds are noise"),
        *[({f"prepare.{key}": [1, 2]}, f"prepare.{key} cannot be tuned: all trials must use the same interactions")
          for key in ("min_rating", "max_per_second")],
        ({"similar.enabled": [True]}, "similar.enabled cannot be tuned: without it there is nothing to measure"),
        ({"train.margin": [1], "similar.penalty": [-1]}, "similar.penalty: should be greater than 0. Received: -1"),
        ({"similar.penalty": [3]}, "for the sense next, settings outside of [similar]. Received: similar.penalty."),
        ({"train.validation_queries": [10]}, "all trials must use the same validation queries"),
        ({"train.temperature": [0.1, -1.0]}, "train.temperature: should be greater than 0. Received: -1.0"),
        ({"train.temperature": {"low": -1, "high": 1}}, "train.temperature: should be greater than 0. Received: -1.0"),
        ({"tower.id_dropout": {"low": 0, "high": 1}}, "tower.id_dropout: should be less than 1. Received: 1.0"),
        ({"prepare.window": {"low": 1.5, "high": 9}}, "prepare.window must be an integer. Received: low 1.5"),
        ({"prepare.window": [1, 2.5]}, "prepare.window: should be a valid integer"),
        ({"prepare.directed": {"low": 0, "high": 1}}, "prepare.directed is not a number"),
        ({"prepare.directed": [1, 0]}, "prepare.directed: should be a valid boolean"),
        ({"tower.hidden": {"low": 8, "high": 16}}, "tower.hidden is not a number"),
        ({"tower.distance": ["cosine", "hamming"]}, "tower.distance: should be 'cosine', 'euclidean' or 'manhattan'"),
        ({"train.temperature": [0.1, 0.2, 0.1]}, "must list each value once. Received twice: 0.1"),
        ({"prepare.half_life_days": {"low": 1, "high": 9}}, "prepare.half_life_days is not set in the config"),
        ({"train.weight_decay": {"low": 1e-6, "high": 1, "log": True}}, "0.0, which has no logarithm, in the config"),
    ],
    ids=str,
)  # fmt: skip
def test_rejects_an_invalid_range_before_the_first_trial(
    config: Config, training: Training, ranges: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        tune(RunContext.from_config(change(config, ranges=ranges)))
    assert message in str(caught.value)
    assert "tune.ranges" in str(caught.value)
    assert training.trained == []
    assert not (config.workspace / "tuning").exists()


def test_all_invalid_ranges_are_reported_together(config: Config) -> None:
    with pytest.raises(ConfigError) as caught:
        tune(
            RunContext.from_config(
                change(config, ranges={"train.seed": [1], "train.margin": [-1.0], "train.loss": ["triplet"]})
            )
        )
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("sense", SENSES)
def test_default_ranges_are_valid(config: Config, sense: Sense) -> None:
    space = SearchSpace.from_config(change(config, ranges=TuneConfig().model_dump()["ranges"]), sense)
    assert set(space.ranges) == {name for name in TuneConfig().ranges if (sense == "similar") == ("similar." in name)}
    assert space.size == math.inf


def test_range_is_extended_to_the_value_of_the_config(config: Config) -> None:
    expected = {
        "train.temperature": {"low": 0.2, "high": 0.3},
        "prepare.half_life_days": [30, 90.0],
        "train.passes": {"low": 20, "high": 30, "log": True},
    }
    space = SearchSpace.from_config(change(config, ranges=expected), "next")
    assert space.base == {"train.temperature": 0.1, "prepare.half_life_days": None, "train.passes": PASSES}
    assert space.ranges == {
        "train.temperature": NumberRange(0.1, 0.3, log=False, is_integer=False),
        "prepare.half_life_days": Choices((None, 30.0, 90.0)),
        "train.passes": NumberRange(PASSES, 30, log=True, is_integer=True),
    }


@pytest.mark.slow
def test_setting_without_a_default_can_be_searched_from_a_list(config: Config, training: Training, clock: Time) -> None:
    ranges = {"prepare.half_life_days": [30, 90], "prepare.session_gap_minutes": [60]}
    tune(RunContext.from_config(change(config, ranges=ranges, trials=50)), clock=clock)
    tried = {(each.prepare.half_life_days, each.prepare.session_gap_minutes) for each in training.trained}
    assert tried == {(days, minutes) for days in (None, 30.0, 90.0) for minutes in (None, 60.0)}


def test_with_settings_changes_only_the_given_settings(config: Config) -> None:
    changed = with_settings(config, {"train.temperature": 0.08, "tower.distance": "euclidean"})
    assert (changed.train.temperature, changed.tower.distance) == (0.08, "euclidean")
    assert with_settings(changed, {"train.temperature": 0.1, "tower.distance": "cosine"}) == config
    assert with_settings(config, {}) == config
    assert isinstance(config.tune.ranges["train.temperature"], Span)


# --- with everything


@pytest.mark.slow
def test_tuned_settings_are_not_worse_than_the_config(tmp_path: Path) -> None:
    """Two trials of a pass on the made-up world, without any stand-in."""
    overrides = ["train.passes=1", "tune.trials=2"]
    config = load_config(world.write(tmp_path), overrides)
    context = RunContext.from_config(config)
    result = tune(context)
    assert result["trials"] == 2
    assert 0 < result["base_value"] <= result["best_value"] <= 1
    _, trials = children(context, result["id"])
    assert [run.info.status for run in trials] == ["FINISHED", "FINISHED"]
    assert trials[0].data.metrics["value"] == pytest.approx(result["base_value"])
    assert {"validation_history_mrr_at_20", "train_loss"} <= set(trials[0].data.metrics)
