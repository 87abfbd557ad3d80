"""tune: search `tune.ranges` for better settings of one sense.

The objective of the sense (`pipelines.tuning.objectives`) is the value of a trial: for `next` the score on the
validation targets, for `similar` the agreement with the users held out. The first trial is the base config, so the
value of the result is never worse. The test targets are not used. An interrupted tuning resumes after its finished
trials.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipelines.context.input_files import InputFiles
from pipelines.context.libraries import quiet_libraries
from pipelines.context.overrides import as_toml, by_table, with_settings
from pipelines.context.progress import Advance, Progress
from pipelines.tuning.objectives import OBJECTIVES, Objective
from pipelines.tuning.prepared_data import PreparedData
from pipelines.tuning.search_space import SearchSpace, ranges_of
from pipelines.tuning.study import MLFLOW_RUN, Study
from recsys.config.sections import Config
from recsys.data.storage import atomic_write
from recsys.errors import RecsysError, StageError, TrackingError
from recsys.evaluation.metrics import VALIDATION_SCORE
from recsys.model.fit_plan import PhaseName
from recsys.release.runs import Run

if TYPE_CHECKING:
    import optuna

    from recsys.release.mlflow_registry import Tracker

BEST_SETTINGS = "best.toml"

MAX_FAILURES = 3
"""Number of failed trials after which a tuning ends if no trial has succeeded."""

OUTCOME_TAG = "recsys.outcome"
MAX_TAG_LENGTH = 5_000
"""Maximum length of a tag in MLflow, in characters."""

Clock = Callable[[], float]


def tune(
    config: Config, run: Run, inputs: InputFiles, progress: Progress, tracker: Tracker, *, clock: Clock = time.monotonic
) -> dict[str, Any]:
    """Run or resume trials until a limit of time or trials is reached, or every combination was tried.

    A trial is stopped at the time limit; the trial of the base config is always completed.

    Args:
        config: the base config; the table `tune` contains the ranges and limits.
        run: the run of the base config, in the sense to tune.
        inputs: input files, from which the trials prepare their data.
        progress: receives the progress of the trials.
        tracker: client of the MLflow server.
        clock: monotonic clock in seconds.

    Returns:
        A JSON-serializable dictionary: `id`; `sense`; `trials`, the number of trials; `best_value`; `base_value`, the
        value of the base config, None if it failed; `settings` of the best trial that differ from the base config;
        `path` of a TOML file with these settings; `seconds`, the duration of all trials.

    Raises:
        ConfigError: a range is invalid, the sense is not trained with these settings, or Optuna is not installed.
        InputError: the input is invalid.
        StageError: another process runs this tuning, the data do not allow a measurement, or no trial has a value.
        TrackingError: MLflow does not answer.
    """
    quiet_libraries()
    space = SearchSpace.from_config(config, run.sense)
    objective = OBJECTIVES[run.sense]()
    objective.check_config(config)
    own_run = tuning_run(config, run)
    with own_run.locked():
        tuning = _Tuning(config, own_run, inputs, progress, tracker, objective=objective, space=space, clock=clock)
        if not tuning.is_finished:
            tuning.search()
        tuning.data.remove()
        return tuning.result()


def tuning_run(config: Config, run: Run) -> Run:
    """Return the run of a tuning; its id depends on the run of the base config and on the ranges for the sense."""
    all_ranges = config.tune.model_dump(mode="json")["ranges"]
    ranges = json.dumps({name: all_ranges[name] for name in ranges_of(config, run.sense)}, sort_keys=True)
    tuning_id = hashlib.sha256(f"{run.run_id} {ranges}".encode()).hexdigest()[:12]
    folder = config.workspace / "tuning" / tuning_id
    folder.mkdir(parents=True, exist_ok=True)
    return replace(run, run_id=tuning_id, folder=folder)


class _Tuning:
    """A tuning that runs in this process."""

    def __init__(
        self,
        config: Config,
        run: Run,
        inputs: InputFiles,
        progress: Progress,
        tracker: Tracker,
        *,
        objective: Objective,
        space: SearchSpace,
        clock: Clock,
    ) -> None:
        self.config, self.run, self.progress, self.tracker = config, run, progress, tracker
        self.data = PreparedData(run, inputs)
        self.objective, self.space, self.clock = objective, space, clock
        self.study = Study(run.folder, space, config)
        self.budget = 60 * config.tune.minutes

    @property
    def is_finished(self) -> bool:
        """Whether a limit is reached or every combination was tried."""
        study = self.study
        has_all_trials = len(study.finished_trials) >= self.config.tune.trials
        return has_all_trials or study.seconds >= self.budget or study.is_exhausted

    @cached_property
    def mlflow_run(self) -> str:
        """The MLflow run that contains the runs of the trials."""
        mlflow_run = self.tracker.start_run(self.run.run_id, self.run.data_snapshot, "tuning")
        self.tracker.log_params(mlflow_run, self.config.shaping())
        self.tracker.log_tags(
            mlflow_run, {"recsys.code_version": self.run.code_version, "recsys.sense": self.run.sense}
        )
        return mlflow_run

    def search(self) -> None:
        """Run trials until the tuning is finished."""
        self.progress.write(f"Tuning {self.run.run_id}")
        tracker, mlflow_run = self.tracker, self.mlflow_run
        try:
            for interrupted in self.study.fail_interrupted():
                tracker.log_tags(interrupted, {OUTCOME_TAG: "killed"})
                tracker.finish_run(interrupted, "KILLED")
            if not self.study.measured_trials:
                self.objective.check_data(self.config, self.data.prepare(self.config))
                self.study.enqueue_base()
            self._run_trials()
        except BaseException:
            with suppress(TrackingError):  # MLflow may be the cause
                tracker.finish_run(mlflow_run, "FAILED")
            raise
        tracker.finish_run(mlflow_run, "FINISHED")

    def _run_trials(self) -> None:
        failures = 0
        while not self.is_finished:
            error = self._run_trial()
            failures += error is not None
            if error is not None and failures >= MAX_FAILURES and not self.study.measured_trials:
                raise error

    def result(self) -> dict[str, Any]:
        """Write the TOML file, and return the result so far; see `tune`.

        Raises:
            StageError: no trial has a value.
        """
        best, base = self.study.best, self.study.base
        if best is None:
            raise StageError(
                f"tuning {self.run.run_id} must complete at least one trial. Received: "
                f"{len(self.study.distinct_trials)} failed or stopped trials. Raise tune.minutes or tune.trials."
            )
        result = {
            "id": self.run.run_id,
            "sense": self.run.sense,
            "trials": len(self.study.distinct_trials),
            "best_value": best.value,
            "base_value": base.value if base else None,
            "settings": best.settings,
            "path": str(self.run.folder / BEST_SETTINGS),
            "seconds": round(self.study.seconds, 1),
        }
        with atomic_write(self.run.folder / BEST_SETTINGS) as draft:
            draft.write_text(result_as_toml(result), encoding="utf-8")
        return result

    def _run_trial(self) -> RecsysError | None:
        """Run one trial; return its error if it fails."""
        started = self.clock()
        trial, settings = self.study.start_trial()
        if self.study.finish_as_repeated(trial, settings):
            return None
        mlflow_run = self.tracker.start_child_run(self.mlflow_run, f"trial {trial.number}")
        trial.set_user_attr(MLFLOW_RUN, mlflow_run)
        self.tracker.log_params(mlflow_run, by_table({**self.space.base, **settings}))
        failure = None
        with self.progress.stage(f"trial {trial.number}") as advance:
            try:
                figures = self._measure(trial, settings, started, advance)
            except self.study.optuna.TrialPruned as pruned:
                self.study.prune(trial, self.clock() - started)
                outcome, status = str(pruned), "FINISHED"
            except TrackingError:  # the settings are not the cause, and it cannot be logged
                raise
            except RecsysError as error:
                failure = error
                self.study.fail(trial, self.clock() - started, str(error))
                outcome, status = f"failed: {error}", "FAILED"
            else:
                self.study.complete(trial, self.clock() - started, figures["value"])
                outcome, status = f"{figures['value']:.4f}", "FINISHED"
                self.tracker.log_metrics(mlflow_run, figures)
                self._log_best(trial.number)
            finally:
                _release_models()
            advance(1, 1, f"{outcome}{self._summary()}")
        self.tracker.log_tags(mlflow_run, {OUTCOME_TAG: outcome[:MAX_TAG_LENGTH]})
        self.tracker.finish_run(mlflow_run, status)
        return failure

    def _measure(
        self, trial: optuna.Trial, settings: dict[str, Any], started: float, advance: Advance
    ) -> dict[str, float]:
        """Train a tower; return the value of the trial, `value`, and its figures.

        Raises:
            optuna.TrialPruned: the trial is worse than the median, or the time limit is reached.
        """
        config = with_settings(self.config, settings)
        max_passes = self.objective.max_passes(config)

        def on_pass(phase: PhaseName, number: int, figures: dict[str, float]) -> None:
            if phase == "new_items":  # this phase has no validation
                return
            value = figures[VALIDATION_SCORE]
            advance(number, max_passes, f"{value:.4f}{self._summary(started)}")
            self.tracker.log_metrics(
                trial.user_attrs[MLFLOW_RUN], {f"train_{name}": figure for name, figure in figures.items()}, number
            )
            if phase == "pairs":  # pass numbers of the history phase differ between trials
                trial.report(value, number)
            if not settings:  # the base config is never stopped: all trials are compared with it
                return
            if self._remaining_seconds(started) <= 0:
                raise self.study.optuna.TrialPruned(f"stopped at {value:.4f}: the time limit is reached")
            if phase == "pairs" and trial.should_prune():
                raise self.study.optuna.TrialPruned(f"{value:.4f} at pass {number}: worse than the median")

        return self.objective.measure(config, self.data.prepare(config), on_pass)

    def _remaining_seconds(self, started: float | None = None) -> float:
        """Return the remaining time, which may be negative; `started` is the start of the current trial."""
        current = 0.0 if started is None else self.clock() - started
        return self.budget - self.study.seconds - current

    def _summary(self, started: float | None = None) -> str:
        """Return the best trial so far and the remaining time, for the progress line."""
        best = self.study.best
        best_so_far = f", best {best.value:.4f} of trial {best.number}" if best else ""
        return f"{best_so_far}, {max(0.0, self._remaining_seconds(started)):,.0f} s left"

    def _log_best(self, number: int) -> None:
        """Write the best settings so far to disk and to MLflow; as tags, because parameters cannot change."""
        result = self.result()
        base = {} if result["base_value"] is None else {"base_value": result["base_value"]}
        settings = {**self.space.base, **result["settings"]}
        self.tracker.log_metrics(self.mlflow_run, {"best_value": result["best_value"], **base}, number)
        self.tracker.log_tags(self.mlflow_run, {f"best.{name}": str(value) for name, value in settings.items()})


def result_as_toml(result: dict[str, Any]) -> str:
    """Format the settings of a result as TOML for the config, with the values in a comment."""
    objective = OBJECTIVES[result["sense"]]
    before = "unknown" if result["base_value"] is None else f"{result['base_value']:.4f}"
    comment = (
        f"# tuning {result['id']}: {objective.metric} {before} before, {result['best_value']:.4f} after "
        f"({objective.explanation}), {result['trials']} trials\n"
    )
    return comment + (as_toml(result["settings"]) or "# no other settings were better than the config\n")


def _release_models() -> None:
    """Free the towers that Keras keeps in memory."""
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session()
