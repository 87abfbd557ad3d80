"""Fan units of work out over Beam.

The jobs use only what behaves alike on every runner: Impulse, Map, FlatMap and GroupByKey with small integer
keys and tiny values. Data goes through files; what travels through Beam are numbers of units. A phase starts
when the one before it is complete.
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

from pipelines.beam import job_servers as servers
from pipelines.beam import loopback
from pipelines.beam import options as profiles
from pipelines.context.progress import Advance
from recsys import errors
from recsys.config.sections import BeamConfig
from recsys.errors import ConfigError, RecsysError, StageError

if TYPE_CHECKING:
    import apache_beam as beam

POLL_S = 0.1
FAILURE = ".error"
"""Ending of the file that a unit leaves which could not do its work."""


class Phase(NamedTuple):
    """`work(unit)` for every unit; writes the file `done(unit)` last and skips the work if it is there."""

    name: str
    units: list[int]
    work: Callable[[int], object]
    done: Callable[[int], Path]


class _Once(NamedTuple):
    """Work on a unit and hand it on under the one key of the next barrier. Picklable, for workers elsewhere."""

    phase: Phase

    def __call__(self, spread: tuple[int, Iterable[int]]) -> tuple[int, int]:
        unit = spread[0]
        done = self.phase.done(unit)
        if done.exists() or not done.parent.is_dir() or any(done.parent.glob(f"*{FAILURE}")):
            return 0, unit  # without its file: `run` tells a folder that is not shared from work that is done
        try:
            self.phase.work(unit)
        except RecsysError as error:
            # runners change type and text of an exception, print its traceback, or try again
            told = {"type": type(error).__name__, "message": str(error)}
            done.with_suffix(FAILURE).write_text(json.dumps(told))
        return 0, unit


def run(phases: list[Phase], config: BeamConfig, advance: Advance) -> None:
    """Run the phases one after the other, the units of each side by side.

    Raises:
        RecsysError: the first that a unit raised; no unit is begun after it.
        ConfigError: options that the profile does not take.
        StageError: a server of the profile does not start, or workers do not share the folder of the run.
    """
    failures = [phase.done(unit).with_suffix(FAILURE) for phase in phases for unit in phase.units]
    for path in failures:  # of an earlier try
        path.unlink(missing_ok=True)
    _beam()  # before anything else imports it, and less quietly
    options = profiles.options(config)
    if config.profile == "dataflow" and find_spec("apitools") is None:
        raise ConfigError('the profile dataflow must find Google\'s libraries. Run: pip install "apache-beam[gcp]"')
    with servers.beside(options) if options["runner"] == "PortableRunner" else nullcontext(options) as options:
        pipeline = _pipeline(options)
        build(pipeline, phases)
        with loopback.confined(), _Watch(phases, advance):
            pipeline.run().wait_until_finish()
    for path in failures:
        if path.exists():
            told = json.loads(path.read_text())
            raise getattr(errors, told["type"])(told["message"])
    for phase in phases:
        for path in map(phase.done, phase.units):
            if not path.exists():
                raise StageError(
                    f"every worker must reach the folder of the run, {path.parent}, under this path. "
                    f"Received: a finished job, and no {path.name}. Put data.workspace where all workers share it."
                )


def _pipeline(options: dict[str, Any]) -> Any:
    beam = _beam()
    try:
        return beam.Pipeline(options=beam.options.pipeline_options.PipelineOptions.from_dictionary(options))
    except ValueError as error:
        raise ConfigError(f"beam.options must pass Beam's own checks. Received: {error}") from None


def build(pipeline: beam.Pipeline, phases: list[Phase]) -> None:
    """The graph: the units of a phase spread by their keys, and a barrier of one key before the next phase.

    As few steps as that takes: each costs some hundredths of a second to plan, as much as many a unit of work.
    """
    beam = _beam()
    passed = pipeline | "start" >> beam.Impulse()
    for number, phase in enumerate(phases):
        if number:
            passed = passed | f"{phase.name}: barrier" >> beam.GroupByKey()
        passed = (
            passed
            | f"{phase.name}: units" >> beam.FlatMap(_Fan(phase.units)).with_output_types(tuple[int, int])
            | f"{phase.name}: spread" >> beam.GroupByKey()
            | f"{phase.name}: work" >> beam.Map(_Once(phase)).with_output_types(tuple[int, int])
        )


def _beam() -> ModuleType:
    """Beam, imported late, since that takes seconds, and without its warnings about Google's libraries."""
    logging.disable(logging.WARNING)
    try:
        import apache_beam  # noqa: PLC0415
    finally:
        logging.disable(logging.NOTSET)
    return apache_beam


class _Fan(NamedTuple):
    units: list[int]

    def __call__(self, _: object) -> list[tuple[int, int]]:
        return [(unit, 0) for unit in self.units]


class _Watch:
    """Counts finished units by their files: the same on every runner, and Beam's own counters come too late."""

    def __init__(self, phases: list[Phase], advance: Advance) -> None:
        self.files = [phase.done(unit) for phase in phases for unit in phase.units]
        self.advance = advance
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.over.wait(POLL_S):
            self.advance(sum(path.exists() for path in self.files), len(self.files))
