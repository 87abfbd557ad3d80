"""Study of a tuning: the trials with their settings and values, stored by Optuna, which suggests the next settings.

Optuna's journal storage flushes each line to disk before a trial continues. Only one process at a time may open it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipelines.tuning.search_space import Choices, NumberRange, SearchSpace
from recsys.config.sections import Config
from recsys.errors import ConfigError

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

JOURNAL = "study.log"

SETTINGS, SECONDS, ERROR, REPEATS, MLFLOW_RUN = "settings", "seconds", "error", "repeats", "mlflow_run"
"""User attributes of a trial."""

STARTUP_TRIALS = 5
"""Number of finished trials before a trial can be pruned, so that the median is meaningful."""


class MeasuredTrial(NamedTuple):
    """A trial with a value."""

    number: int
    value: float
    settings: dict[str, Any]
    """Settings that differ from the config."""


class Study:
    """The trials of a tuning, stored in a folder.

    Args:
        folder: folder of the journal.
        space: the search space.
        config: the base config.

    Raises:
        ConfigError: Optuna is not installed.
    """

    def __init__(self, folder: Path, space: SearchSpace, config: Config) -> None:
        self.optuna = _import_optuna()
        self.space, self.seed = space, config.train.seed
        journal = folder / JOURNAL
        _repair(journal)
        backend = self.optuna.storages.journal.JournalFileBackend(os.fspath(journal))
        self.study = self.optuna.create_study(
            storage=self.optuna.storages.JournalStorage(backend),
            study_name=folder.name,
            direction="maximize",
            load_if_exists=True,
            # no trial is pruned within the patience of early stopping
            pruner=self.optuna.pruners.MedianPruner(STARTUP_TRIALS, n_warmup_steps=config.train.patience),
        )

    @property
    def finished_trials(self) -> list[optuna.trial.FrozenTrial]:
        """Trials that were completed, pruned, or failed with an error; without those whose process was killed."""
        states = self.optuna.trial.TrialState
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state in (states.COMPLETE, states.PRUNED)
            or (trial.state == states.FAIL and ERROR in trial.user_attrs)
        ]

    @property
    def distinct_trials(self) -> list[optuna.trial.FrozenTrial]:
        """Finished trials that do not repeat an earlier one."""
        return [trial for trial in self.finished_trials if REPEATS not in trial.user_attrs]

    @property
    def seconds(self) -> float:
        """Duration of all trials in seconds."""
        return float(sum(trial.user_attrs[SECONDS] for trial in self.distinct_trials))

    @property
    def measured_trials(self) -> list[MeasuredTrial]:
        """Trials with a value, oldest first."""
        complete = self.optuna.trial.TrialState.COMPLETE
        return [
            MeasuredTrial(trial.number, float(trial.value or 0.0), trial.user_attrs[SETTINGS])
            for trial in self.distinct_trials
            if trial.state == complete
        ]

    @property
    def best(self) -> MeasuredTrial | None:
        """The trial with the largest value; among equal values the first, so the base config is preferred."""
        return max(self.measured_trials, key=lambda trial: trial.value, default=None)

    @property
    def base(self) -> MeasuredTrial | None:
        """The trial of the base config."""
        return next((trial for trial in self.measured_trials if not trial.settings), None)

    @property
    def is_exhausted(self) -> bool:
        """Whether every combination has been tried."""
        return len({_key(trial.user_attrs[SETTINGS]) for trial in self.distinct_trials}) >= self.space.size

    def fail_interrupted(self) -> list[str]:
        """Mark the trials whose process was killed as failed, and return their MLflow run ids."""
        states = self.optuna.trial.TrialState
        interrupted = [trial for trial in self.study.trials if trial.state == states.RUNNING]
        for trial in interrupted:
            self.study.tell(trial.number, state=states.FAIL)
        return [trial.user_attrs[MLFLOW_RUN] for trial in interrupted if MLFLOW_RUN in trial.user_attrs]

    def enqueue_base(self) -> None:
        """Make the base config the next trial."""
        waiting = self.optuna.trial.TrialState.WAITING
        if not self.study.get_trials(deepcopy=False, states=(waiting,)):
            self.study.enqueue_trial(self.space.base)

    def start_trial(self) -> tuple[optuna.Trial, dict[str, Any]]:
        """Start the next trial; return it and its settings that differ from the config.

        Each trial has its own seed. With one seed for all, a resumed tuning would sample the same points again.
        """
        number = len(self.study.get_trials(deepcopy=False))
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
        self.study.sampler = self.optuna.samplers.TPESampler(seed=seed)
        trial = self.study.ask({name: self._distribution(values) for name, values in self.space.ranges.items()})
        settings = self.space.changed_settings(trial.params)
        trial.set_user_attr(SETTINGS, settings)
        return trial, settings

    def finish_as_repeated(self, trial: optuna.Trial, settings: Mapping[str, Any]) -> bool:
        """Finish a trial with the result of an earlier trial with the same settings; return whether there is one.

        Training is deterministic, so a repeated trial has the same result. The base config is repeated until it has a
        value, because the settings may not be the cause of its failure.
        """
        states = self.optuna.trial.TrialState
        repeated = next(
            (
                earlier
                for earlier in self.distinct_trials
                if _key(earlier.user_attrs[SETTINGS]) == _key(settings)
                and (settings or earlier.state == states.COMPLETE)
            ),
            None,
        )
        if repeated is None:
            return False
        trial.set_user_attr(REPEATS, repeated.number)
        if repeated.state == states.FAIL:
            trial.set_user_attr(ERROR, repeated.user_attrs[ERROR])
        self.study.tell(trial, repeated.value if repeated.state == states.COMPLETE else None, repeated.state)
        return True

    def complete(self, trial: optuna.Trial, seconds: float, value: float) -> None:
        """Finish a trial with its value."""
        trial.set_user_attr(SECONDS, seconds)
        self.study.tell(trial, value)

    def prune(self, trial: optuna.Trial, seconds: float) -> None:
        """Finish a trial that was stopped early."""
        trial.set_user_attr(SECONDS, seconds)
        self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)

    def fail(self, trial: optuna.Trial, seconds: float, error: str) -> None:
        """Finish a trial that raised an error."""
        trial.set_user_attr(SECONDS, seconds)
        trial.set_user_attr(ERROR, error)
        self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)

    def _distribution(self, values: NumberRange | Choices) -> BaseDistribution:
        from optuna import distributions  # noqa: PLC0415 - optional

        if isinstance(values, Choices):
            return distributions.CategoricalDistribution(values.values)
        if values.is_integer:
            return distributions.IntDistribution(int(values.low), int(values.high), log=values.log)
        return distributions.FloatDistribution(values.low, values.high, log=values.log)


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _repair(journal: Path) -> None:
    """Remove an incomplete last line and Optuna's lock, which remain if a process is killed while it writes.

    Otherwise Optuna would append to the incomplete line and never read it, and wait half a minute for the lock.
    """
    Path(f"{journal}.lock").unlink(missing_ok=True)
    if journal.exists():
        content = journal.read_bytes()
        os.truncate(journal, content.rfind(b"\n") + 1)


def _import_optuna() -> Any:
    """Import Optuna on first use, and silence its log messages."""
    try:
        import optuna  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ConfigError("tuning requires optuna, which is not installed. Install recsys[tune].") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
