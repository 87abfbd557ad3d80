"""Run the phases of a job on Beam, with the units of each phase in parallel.

A phase starts when the previous phase is complete. The elements of the pipeline are the numbers of the units; the data
are exchanged through files. The jobs use only transforms that behave the same on all runners: Impulse, Map, FlatMap,
and GroupByKey with small integer keys and values.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.beam import job_servers, loopback
from pipelines.beam.options import pipeline_options
from pipelines.context.progress import Advance
from recsys import errors
from recsys.config.sections import BeamConfig
from recsys.errors import ConfigError, RecsysError, StageError

if TYPE_CHECKING:
    import apache_beam as beam

POLL_S = 0.1
ERROR_SUFFIX = ".error"
"""Suffix of the file that a failed unit writes."""


class Phase(NamedTuple):
    """A step of a job: calls `work(unit)` for each unit.

    `work` writes the file `done_file(unit)` last; units whose file exists are skipped.
    """

    name: str
    units: list[int]
    work: Callable[[int], object]
    done_file: Callable[[int], Path]


class _UnitWork(NamedTuple):
    """Does the work of a unit and emits the unit with key 0, the only key of the next barrier.

    Picklable, because it is sent to the workers.
    """

    phase: Phase

    def __call__(self, grouped: tuple[int, Iterable[int]]) -> tuple[int, int]:
        unit = grouped[0]
        done = self.phase.done_file(unit)
        if done.exists() or not done.parent.is_dir() or any(done.parent.glob(f"*{ERROR_SUFFIX}")):
            return 0, unit  # if the folder is not shared, `run` detects the missing file
        try:
            self.phase.work(unit)
        except RecsysError as error:
            # in a file, because runners wrap exceptions, print tracebacks, or retry
            content = {"type": type(error).__name__, "message": str(error)}
            done.with_suffix(ERROR_SUFFIX).write_text(json.dumps(content))
        return 0, unit


def run(phases: list[Phase], config: BeamConfig, advance: Advance) -> None:
    """Run the phases in order, with the units of each phase in parallel.

    Raises:
        RecsysError: the first error of a unit; no units are started after it.
        ConfigError: the Beam options are invalid.
        StageError: a server does not start, or the workers do not share the folder of the run.
    """
    error_files = [phase.done_file(unit).with_suffix(ERROR_SUFFIX) for phase in phases for unit in phase.units]
    for path in error_files:  # left by an earlier attempt
        path.unlink(missing_ok=True)
    _import_beam()  # before all other imports of Beam, because this one suppresses warnings
    options = pipeline_options(config)
    if config.profile == "dataflow" and find_spec("apitools") is None:
        raise ConfigError('the profile dataflow needs Google\'s libraries. Run: pip install "apache-beam[gcp]"')
    with job_servers.started(options) if options["runner"] == "PortableRunner" else nullcontext(options) as options:
        _run_pipeline(phases, options, advance)
    for path in error_files:
        if path.exists():
            content = json.loads(path.read_text())
            raise getattr(errors, content["type"])(content["message"])
    for phase in phases:
        for path in map(phase.done_file, phase.units):
            if not path.exists():
                raise StageError(
                    f"every worker must have access to the folder of the run, {path.parent}, under this path. "
                    f"Received: a finished job without {path.name}. Set data.workspace to a shared folder."
                )


def _run_pipeline(phases: list[Phase], options: dict[str, Any], advance: Advance) -> None:
    pipeline = _pipeline(options)
    build_pipeline(pipeline, phases)
    with loopback.bind_loopback_only(), _ProgressWatcher(phases, advance):
        pipeline.run().wait_until_finish()


def _pipeline(options: dict[str, Any]) -> Any:
    beam = _import_beam()
    try:
        return beam.Pipeline(options=beam.options.pipeline_options.PipelineOptions.from_dictionary(options))
    except ValueError as error:
        raise ConfigError(f"beam.options must pass Beam's own checks. Received: {error}") from None


def build_pipeline(pipeline: beam.Pipeline, phases: list[Phase]) -> None:
    """Add the phases to the pipeline.

    Each phase distributes its units by a shuffle; a barrier, GroupByKey with a single key, separates it from the next
    phase. The number of transforms is minimal, because planning each takes some hundredths of a second.
    """
    beam = _import_beam()
    collection = pipeline | "start" >> beam.Impulse()
    for number, phase in enumerate(phases):
        if number:
            collection = collection | f"{phase.name}: barrier" >> beam.GroupByKey()
        collection = (
            collection
            | f"{phase.name}: units" >> beam.FlatMap(_Units(phase.units)).with_output_types(tuple[int, int])
            | f"{phase.name}: spread" >> beam.GroupByKey()
            | f"{phase.name}: work" >> beam.Map(_UnitWork(phase)).with_output_types(tuple[int, int])
        )


def _import_beam() -> ModuleType:
    """Import Beam without its warnings about Google's libraries; on first use, because the import takes seconds."""
    logging.disable(logging.WARNING)
    try:
        import apache_beam  # noqa: PLC0415
    finally:
        logging.disable(logging.NOTSET)
    return apache_beam


class _Units(NamedTuple):
    units: list[int]

    def __call__(self, _: object) -> list[tuple[int, int]]:
        return [(unit, 0) for unit in self.units]


class _ProgressWatcher:
    """Counts finished units by their files, which works on all runners; Beam's counters arrive too late."""

    def __init__(self, phases: list[Phase], advance: Advance) -> None:
        self.files = [phase.done_file(unit) for phase in phases for unit in phase.units]
        self.advance = advance
        self.finished = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.finished.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.finished.wait(POLL_S):
            self.advance(sum(path.exists() for path in self.files), len(self.files))
