"""The trials of a tuning, kept on disk by Optuna: what was tried, what came of it, what to try next.

A journal, since every line of it is forced to the disk before a trial goes on. Opened by one process at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipelines.tuning.search_space import Numbers, Space, Values
from recsys.config.sections import Config
from recsys.errors import ConfigError

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

JOURNAL = "study.log"

SETTINGS, SECONDS, ERROR, REPEATS, MLFLOW_RUN = "settings", "seconds", "error", "repeats", "mlflow_run"
"""What a trial has written beside it."""

STARTUP_TRIALS = 5
"""Finished trials before the first is pruned: a median of fewer says little."""


class Scored(NamedTuple):
    """A trial that was measured."""

    number: int
    value: float
    settings: dict[str, Any]
    """What it has different from the config."""


class Study:
    """What was tried below a folder.

    Raises:
        ConfigError: Optuna is not installed.
    """

    def __init__(self, folder: Path, space: Space, config: Config) -> None:
        self.optuna = _optuna()
        self.space, self.seed = space, config.train.seed
        journal = folder / JOURNAL
        _mend(journal)
        backend = self.optuna.storages.journal.JournalFileBackend(os.fspath(journal))
        self.study = self.optuna.create_study(
            storage=self.optuna.storages.JournalStorage(backend),
            study_name=folder.name,
            direction="maximize",
            load_if_exists=True,
            # passes that training itself waits for a better one are not taken from any trial
            pruner=self.optuna.pruners.MedianPruner(STARTUP_TRIALS, n_warmup_steps=config.train.patience),
        )

    @property
    def ended(self) -> list[optuna.trial.FrozenTrial]:
        """Trials that came to their end, whatever it was; not those whose process was killed."""
        states = self.optuna.trial.TrialState
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state in (states.COMPLETE, states.PRUNED)
            or (trial.state == states.FAIL and ERROR in trial.user_attrs)
        ]

    @property
    def tried(self) -> list[optuna.trial.FrozenTrial]:
        """Those of them that were no repeats."""
        return [trial for trial in self.ended if REPEATS not in trial.user_attrs]

    @property
    def spent(self) -> float:
        """Seconds that all of them took."""
        return float(sum(trial.user_attrs[SECONDS] for trial in self.tried))

    @property
    def scored(self) -> list[Scored]:
        """Those that were measured, oldest first."""
        complete = self.optuna.trial.TrialState.COMPLETE
        return [
            Scored(trial.number, float(trial.value or 0.0), trial.user_attrs[SETTINGS])
            for trial in self.tried
            if trial.state == complete
        ]

    @property
    def best(self) -> Scored | None:
        """The first with the largest value: nothing new is chosen that is not better."""
        return max(self.scored, key=lambda scored: scored.value, default=None)

    @property
    def base(self) -> Scored | None:
        """The config as it is."""
        return next((scored for scored in self.scored if not scored.settings), None)

    @property
    def exhausted(self) -> bool:
        """Whether every combination was tried."""
        return len({_key(trial.user_attrs[SETTINGS]) for trial in self.tried}) >= self.space.size

    def bury(self) -> list[str]:
        """Mark as failed what was under way when its process ended; the MLflow runs of those trials."""
        states = self.optuna.trial.TrialState
        killed = [trial for trial in self.study.trials if trial.state == states.RUNNING]
        for trial in killed:
            self.study.tell(trial.number, state=states.FAIL)
        return [trial.user_attrs[MLFLOW_RUN] for trial in killed if MLFLOW_RUN in trial.user_attrs]

    def begin_at_the_start(self) -> None:
        """Have the config as it is tried next."""
        waiting = self.optuna.trial.TrialState.WAITING
        if not self.study.get_trials(deepcopy=False, states=(waiting,)):
            self.study.enqueue_trial(self.space.start)

    def ask(self) -> tuple[optuna.Trial, dict[str, Any]]:
        """The next trial, and its settings that differ from the config.

        A sampler starts from its seed in every process. So each trial has a seed of its own, or a tuning that is
        gone on with would draw again what it drew before.
        """
        number = len(self.study.get_trials(deepcopy=False))
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
        self.study.sampler = self.optuna.samplers.TPESampler(seed=seed)
        trial = self.study.ask({name: self._distribution(choice) for name, choice in self.space.ranges.items()})
        settings = self.space.settings(trial.params)
        trial.set_user_attr(SETTINGS, settings)
        return trial, settings

    def repeat(self, trial: optuna.Trial, settings: Mapping[str, Any]) -> bool:
        """End a trial as an earlier one with the same settings ended, if there is one: training repeats itself.

        Only the config as it is may be tried until it can be measured: it need not be what was wrong.
        """
        states = self.optuna.trial.TrialState
        same = [other for other in self.tried if _key(other.user_attrs[SETTINGS]) == _key(settings)]
        earlier = next((other for other in same if settings or other.state == states.COMPLETE), None)
        if earlier is None:
            return False
        trial.set_user_attr(REPEATS, earlier.number)
        if earlier.state == states.FAIL:
            trial.set_user_attr(ERROR, earlier.user_attrs[ERROR])
        self.study.tell(trial, earlier.value if earlier.state == states.COMPLETE else None, earlier.state)
        return True

    def finish(self, trial: optuna.Trial, seconds: float, value: float) -> None:
        """A trial was measured."""
        trial.set_user_attr(SECONDS, seconds)
        self.study.tell(trial, value)

    def prune(self, trial: optuna.Trial, seconds: float) -> None:
        """A trial was stopped."""
        trial.set_user_attr(SECONDS, seconds)
        self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)

    def fail(self, trial: optuna.Trial, seconds: float, error: str) -> None:
        """A trial could not be measured."""
        trial.set_user_attr(SECONDS, seconds)
        trial.set_user_attr(ERROR, error)
        self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)

    def _distribution(self, choice: Numbers | Values) -> BaseDistribution:
        from optuna import distributions  # noqa: PLC0415 - an extra

        if isinstance(choice, Values):
            return distributions.CategoricalDistribution(choice.values)
        if choice.whole:
            return distributions.IntDistribution(int(choice.low), int(choice.high), log=choice.log)
        return distributions.FloatDistribution(choice.low, choice.high, log=choice.log)


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _mend(journal: Path) -> None:
    """Remove what a process leaves that is killed while it writes: half a line, and Optuna's own lock.

    Optuna would write on behind the half line and then not read it, and wait half a minute for the lock.
    """
    Path(f"{journal}.lock").unlink(missing_ok=True)
    if journal.exists():
        content = journal.read_bytes()
        os.truncate(journal, content.rfind(b"\n") + 1)


def _optuna() -> Any:
    """Optuna, imported when it is needed, without what it tells on the screen."""
    try:
        import optuna  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ConfigError("tuning needs optuna, which is not installed. Install recsys[tune].") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
