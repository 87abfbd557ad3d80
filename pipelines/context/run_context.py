"""The run context: config, run, input files and progress, from which the stages receive their arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from pipelines.context.input_files import InputFiles
from pipelines.context.progress import Progress
from pipelines.context.run_tracking import RunTracking
from recsys.config.sections import Config
from recsys.release.runs import Inputs, Run


@dataclass(frozen=True)
class RunContext:
    """Context of a run of the pipeline, or of a single stage. Each stage receives only the parts that it uses."""

    config: Config
    run: Run
    inputs: InputFiles
    progress: Progress = field(default_factory=lambda: Progress(quiet=True))

    @classmethod
    def from_config(
        cls, config: Config, progress: Progress | None = None, find_run: Callable[[Config, Inputs], Run] = Run.create
    ) -> RunContext:
        """Return the context of the run of a config and its input files.

        Args:
            config: the complete config.
            progress: receives the progress; by default, none is shown.
            find_run: returns the run of a config and its inputs; `Run.create` creates its folder, `Run.find` writes
                nothing.

        Raises:
            ConfigError: `data.interactions` is not set.
            InputError: input files are missing, or the workspace is not writable.
        """
        inputs = InputFiles.find(config.data)
        return cls(config, find_run(config, inputs.by_role()), inputs, progress or Progress(quiet=True))

    @cached_property
    def tracking(self) -> RunTracking:
        """MLflow client, run and metrics of this run."""
        return RunTracking(self.config, self.run, self.inputs, self.progress)
