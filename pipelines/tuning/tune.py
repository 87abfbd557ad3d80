"""tune: search `tune.ranges` for settings that are better on the validation target.

The first trial is the config as it is, so what is found is never worse there. The test target is not looked at.
A tuning that was stopped, however, goes on with the trials that are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.context.input_files import InputFiles
from pipelines.context.libraries import quiet_libraries
from pipelines.context.overrides import as_toml, by_table, with_settings
from pipelines.context.progress import Advance, Progress
from pipelines.prepare.stage import prepare
from pipelines.stages.train import fit_tower, load_split, measure_validation
from pipelines.tuning import search_space as ranges
from pipelines.tuning.search_space import Space
from pipelines.tuning.study import MLFLOW_RUN, Study
from recsys.config.sections import Config
from recsys.data.storage import atomic_write
from recsys.errors import RecsysError, StageError, TrackingError
from recsys.evaluation.baseline_search import QUERY_KINDS
from recsys.evaluation.metrics import VALIDATION_SCORE, validation_score
from recsys.model.fit_plan import PhaseName, validation_plan
from recsys.release.runs import Run

if TYPE_CHECKING:
    import optuna

    from recsys.release.mlflow_registry import Tracker

BEST = "best.toml"
PREPARED = "prepared-"
"""Folders of pairs, by a hash of the settings that they were counted with."""

MAX_PREPARED = 4
"""Those folders at a time: a range of numbers has new pairs for nearly every trial."""

MAX_FAILURES = 3
"""So many failures and nothing else: it is not the settings that are wrong."""

OUTCOME_TAG = "recsys.outcome"
MAX_TAG = 5_000
"""Characters of a tag that MLflow accepts."""

Clock = Callable[[], float]


def tune(
    config: Config, run: Run, inputs: InputFiles, progress: Progress, tracker: Tracker, *, clock: Clock = time.monotonic
) -> dict[str, Any]:
    """Search until the time is up, the trials are done, or nothing is left to try; or go on with that.

    The value of a trial is the mean of the two NDCG@20 on the validation target, from the last item and from the
    history. Time counts from the start of a trial to its end; the config as it is always comes to its end.

    Args:
        config: says where to search, and how long.
        run: of the config as it is.
        inputs: what trials prepare their pairs from.
        progress: where trials are shown.
        tracker: MLflow.
        clock: seconds since whenever.

    Returns:
        Ready for JSON: `id`; `trials`, how many there are; `best_value`; `base_value`, of the config as it is, None
        where that failed; `settings`, those of the best trial that differ from the config; `path`, of the TOML file
        with them; `seconds` of all trials.

    Raises:
        ConfigError: a range that cannot be searched, or Optuna is not installed.
        InputError: the input cannot be used.
        StageError: another process is at it, nothing is held out, or no trial could be measured.
        TrackingError: MLflow does not answer.
    """
    quiet_libraries()
    space = ranges.check(config)
    tuned = tuning_run(config, run)
    with tuned.locked():
        tuning = _Tuning(config, tuned, inputs, progress, tracker, space=space, clock=clock)
        if not tuning.over:
            tuning.search()
        for folder in tuning.prepared:
            shutil.rmtree(folder)
        return tuning.result()


def tuning_run(config: Config, run: Run) -> Run:
    """The folder of a tuning, which is named by what went in, what works on it, and where it searches."""
    searched = json.dumps(config.tune.model_dump(mode="json")["ranges"], sort_keys=True)
    tuning_id = hashlib.sha256(f"{run.run_id} {searched}".encode()).hexdigest()[:12]
    folder = config.workspace / "tuning" / tuning_id
    folder.mkdir(parents=True, exist_ok=True)
    return replace(run, run_id=tuning_id, folder=folder)


class _Tuning:
    """One session of a tuning."""

    def __init__(
        self,
        config: Config,
        run: Run,
        inputs: InputFiles,
        progress: Progress,
        tracker: Tracker,
        *,
        space: Space,
        clock: Clock,
    ) -> None:
        self.config, self.run, self.inputs, self.progress, self.tracker = config, run, inputs, progress, tracker
        self.space, self.clock = space, clock
        self.study = Study(run.folder, space, config)
        self.budget = 60 * config.tune.minutes

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do."""
        tried = len(self.study.ended) >= self.config.tune.trials
        return tried or self.study.spent >= self.budget or self.study.exhausted

    @cached_property
    def mlflow_run(self) -> str:
        """The MLflow run that the trials are below."""
        mlflow_run = self.tracker.start(self.run.run_id, self.run.data_snapshot, "tuning")
        self.tracker.log_params(mlflow_run, self.config.shaping())
        self.tracker.log_tags(mlflow_run, {"recsys.code_version": self.run.code_version})
        return mlflow_run

    @property
    def prepared(self) -> list[Path]:
        """Folders of pairs, the last used first."""
        found = self.run.folder.glob(f"{PREPARED}*")
        return sorted(found, key=lambda folder: folder.stat().st_mtime_ns, reverse=True)

    def search(self) -> None:
        """Try one after the other."""
        self.progress.write(f"Tuning {self.run.run_id}")
        tracker, mlflow_run = self.tracker, self.mlflow_run
        try:
            for killed in self.study.bury():
                tracker.log_tags(killed, {OUTCOME_TAG: "killed"})
                tracker.finish(killed, "KILLED")
            if not self.study.scored:
                self._require_questions()
                self.study.begin_at_the_start()
            self._try_all()
        except BaseException:
            with suppress(TrackingError):  # it may be what failed
                tracker.finish(mlflow_run, "FAILED")
            raise
        tracker.finish(mlflow_run, "FINISHED")

    def _try_all(self) -> None:
        failures = 0
        while not self.over:
            error = self._try_next()
            failures += error is not None
            if error is not None and failures >= MAX_FAILURES and not self.study.scored:
                raise error

    def result(self) -> dict[str, Any]:
        """What was found so far; the file is written anew.

        Raises:
            StageError: no trial was measured.
        """
        best, base = self.study.best, self.study.base
        if best is None:
            raise StageError(
                f"tuning {self.run.run_id} must measure one trial at least. Received: {len(self.study.tried)} that "
                "failed or were stopped. Raise tune.minutes or tune.trials."
            )
        found = {
            "id": self.run.run_id,
            "trials": len(self.study.tried),
            "best_value": best.value,
            "base_value": base.value if base else None,
            "settings": best.settings,
            "path": str(self.run.folder / BEST),
            "seconds": round(self.study.spent, 1),
        }
        with atomic_write(self.run.folder / BEST) as draft:
            draft.write_text(snippet(found), encoding="utf-8")
        return found

    def _require_questions(self) -> None:
        run = self._prepare(self.config)
        if not len(load_split(run).holdout("validation", self.config.evaluate.users)):
            raise StageError(
                "tuning needs users with a validation target. Received: none. Without held-out interactions no "
                "setting can be called better: give more interactions, or another evaluate.split."
            )

    def _try_next(self) -> RecsysError | None:
        """One trial, from its settings to its figures; the error of one that failed."""
        started = self.clock()
        trial, settings = self.study.ask()
        if self.study.repeat(trial, settings):
            return None
        tracker = self.tracker
        mlflow_run = tracker.start_child(self.mlflow_run, f"trial {trial.number}")
        trial.set_user_attr(MLFLOW_RUN, mlflow_run)
        tracker.log_params(mlflow_run, by_table({**self.space.start, **settings}))
        failure = None
        with self.progress.stage(f"trial {trial.number}") as advance:
            try:
                figures = self._measure(trial, settings, started, advance)
            except self.study.optuna.TrialPruned as pruned:
                self.study.prune(trial, self.clock() - started)
                outcome, status = str(pruned), "FINISHED"
            except TrackingError:  # of no settings, and there is nowhere to tell it
                raise
            except RecsysError as error:
                failure = error
                self.study.fail(trial, self.clock() - started, str(error))
                outcome, status = f"failed: {error}", "FAILED"
            else:
                value = figures["value"]
                self.study.finish(trial, self.clock() - started, value)
                outcome, status = f"{value:.4f}", "FINISHED"
                tracker.log_metrics(mlflow_run, figures)
                self._log_best(trial.number)
            finally:
                _forget_models()
            advance(1, 1, f"{outcome}{self._standing()}")
        tracker.log_tags(mlflow_run, {OUTCOME_TAG: outcome[:MAX_TAG]})
        tracker.finish(mlflow_run, status)
        return failure

    def _measure(
        self, trial: optuna.Trial, settings: dict[str, Any], started: float, advance: Advance
    ) -> dict[str, float]:
        """All figures on the validation target, and `value`, which is to be as large as possible.

        Raises:
            optuna.TrialPruned: it is worse than most, or the time is up.
        """
        config = with_settings(self.config, settings)
        max_passes = config.train.passes + config.train.history_passes

        def on_pass(phase: PhaseName, number: int, figures: dict[str, float]) -> None:
            if phase == "new_items":  # is not validated
                return
            value = figures[VALIDATION_SCORE]
            advance(number, max_passes, f"{value:.4f}{self._standing(started)}")
            self.tracker.log_metrics(
                trial.user_attrs[MLFLOW_RUN], {f"train_{name}": figure for name, figure in figures.items()}, number
            )
            if phase == "pairs":  # the history phase starts at another number in each trial
                trial.report(value, number)
            if not settings:  # the other trials are compared with the config as it is, so it is never stopped
                return
            if self._left(started) <= 0:
                raise self.study.optuna.TrialPruned(f"stopped at {value:.4f}: the time is up")
            if phase == "pairs" and trial.should_prune():
                raise self.study.optuna.TrialPruned(f"{value:.4f} at pass {number}: worse than most")

        run = self._prepare(config)
        fitted = fit_tower(config, run, validation_plan(config), on_pass)
        judged = measure_validation(config, run, fitted.embeddings)["validation"]
        return {
            "value": validation_score(judged.values()),
            **{
                f"validation_{look_up}_{name}": value
                for look_up in QUERY_KINDS
                for name, value in judged[look_up].items()
                if isinstance(value, float)
            },
        }

    def _prepare(self, config: Config) -> Run:
        """Return a run whose prepare stage is finished; trials with the same `[prepare]` table share its folder."""
        table = json.dumps(config.model_dump(mode="json")["prepare"], sort_keys=True)
        folder = self.run.folder / f"{PREPARED}{hashlib.sha256(table.encode()).hexdigest()[:12]}"
        folder.mkdir(exist_ok=True)
        os.utime(folder)
        for unused in self.prepared[MAX_PREPARED:]:
            shutil.rmtree(unused)
        run = replace(self.run, folder=folder)
        prepare(config, run, self.inputs, Progress(quiet=True))
        return run

    def _left(self, started: float | None = None) -> float:
        """Seconds that are left, while a trial is at work or between two; below 0 when they are overdrawn."""
        under_way = 0.0 if started is None else self.clock() - started
        return self.budget - self.study.spent - under_way

    def _standing(self, started: float | None = None) -> str:
        """The best so far, and what is left."""
        best = self.study.best
        so_far = f", best {best.value:.4f} of trial {best.number}" if best else ""
        return f"{so_far}, {max(0.0, self._left(started)):,.0f} s left"

    def _log_best(self, number: int) -> None:
        """The best of all trials so far, on the disk and in MLflow, whose parameters could not change."""
        found = self.result()
        base = {} if found["base_value"] is None else {"base_value": found["base_value"]}
        tracker, values = self.tracker, {**self.space.start, **found["settings"]}
        tracker.log_metrics(self.mlflow_run, {"best_value": found["best_value"], **base}, number)
        tracker.log_tags(self.mlflow_run, {f"best.{name}": str(value) for name, value in values.items()})


def snippet(found: dict[str, Any]) -> str:
    """What `tune` found as TOML, to be pasted into the config: the settings, and a comment that tells of them."""
    before = "unknown" if found["base_value"] is None else f"{found['base_value']:.4f}"
    comment = (
        f"# tuning {found['id']}: validation NDCG@20 {before} before, {found['best_value']:.4f} after "
        f"(mean of both look-ups), {found['trials']} trials\n"
    )
    return comment + (as_toml(found["settings"]) or "# the config as it is was best\n")


def _forget_models() -> None:
    """Give back what Keras keeps of the towers of this process, if there were any."""
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session()
