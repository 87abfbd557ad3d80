"""The run context: all that the stages of one run are called with, built once by whoever starts them."""

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
    """One run of the pipeline, or of one of its stages. A stage is given the parts that it uses."""

    config: Config
    run: Run
    inputs: InputFiles
    progress: Progress = field(default_factory=lambda: Progress(quiet=True))

    @classmethod
    def from_config(
        cls, config: Config, progress: Progress | None = None, find_run: Callable[[Config, Inputs], Run] = Run.create
    ) -> RunContext:
        """Find the input files, and the run that belongs to them and to the config.

        Args:
            config: the whole config.
            progress: where progress is shown; nowhere by default.
            find_run: `Run.find` writes nothing.

        Raises:
            ConfigError: the config names no interactions.
            InputError: input files are missing, or the workspace is not writable.
        """
        inputs = InputFiles.find(config.data)
        return cls(config, find_run(config, inputs.by_role()), inputs, progress or Progress(quiet=True))

    @cached_property
    def tracking(self) -> RunTracking:
        """The MLflow run of this run."""
        return RunTracking(self.config, self.run, self.inputs, self.progress)
