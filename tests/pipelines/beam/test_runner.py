"""The Beam runner: portable transforms only, resumable phases, and errors with their original type."""

import ast
import json
import pickle
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest

import pipelines
from pipelines.beam import runner
from pipelines.context.run_context import RunContext
from pipelines.export.job import export_neighbors
from pipelines.prepare import stage as prepare
from pipelines.stages import embed
from recsys import errors
from recsys.config.loading import parse_config
from recsys.config.sections import BeamConfig
from recsys.errors import InputError, ReleaseError, StageError, UnknownItemError
from recsys.release.bundle import Release
from tests import GOLDEN_RELEASES

beam = runner._import_beam()
from apache_beam.pipeline import PipelineVisitor  # noqa: E402 - runner imports Beam without its warnings
from apache_beam.transforms.core import CallableWrapperDoFn  # noqa: E402

pytestmark = pytest.mark.beam

Profile = Literal["local", "local-threads", "portable"]
GOLDEN = GOLDEN_RELEASES / "v2"
every_profile = pytest.mark.parametrize(
    "profile", ["local", "local-threads", pytest.param("portable", marks=pytest.mark.slow)]
)


def ignore_progress(*_: object, **__: object) -> None:
    """Ignore progress."""


# --- the portable subset


class PortabilityVisitor(PipelineVisitor):
    """Collects the transforms of a pipeline that do not behave alike on every runner.

    Map and FlatMap are a ParDo around a plain function. Create consists of an Impulse, two functions, and a
    MaybeReshuffle that is empty without a reshuffle.
    """

    PRIMITIVES = (beam.transforms.core.Impulse, beam.GroupByKey)
    COMPOSITES = ("Create", "MaybeReshuffle")

    def __init__(self) -> None:
        self.rejected: list[str] = []
        self.visited: list[str] = []

    def enter_composite_transform(self, transform_node: Any) -> None:
        # only the root of the graph is a composite without a transform
        transform = transform_node.transform
        if transform is not None and type(transform).__name__ not in self.COMPOSITES:
            self._reject(transform_node)

    def visit_transform(self, transform_node: Any) -> None:
        transform = transform_node.transform
        self.visited.append(type(transform).__name__)
        plain_function = type(transform) is beam.ParDo and type(transform.fn) is CallableWrapperDoFn
        single_output = not transform_node.side_inputs and list(transform_node.outputs) == [None]
        if not (single_output and (plain_function or type(transform) in self.PRIMITIVES)):
            self._reject(transform_node)

    def _reject(self, node: Any) -> None:
        self.rejected.append(f"{node.full_label}: {type(node.transform).__name__}")


def visit(pipeline: Any) -> PortabilityVisitor:
    visitor = PortabilityVisitor()
    pipeline.visit(visitor)
    return visitor


def empty_pipeline() -> Any:
    return beam.Pipeline(runner="FnApiRunner")


class CapturedPhases(Exception):  # noqa: N818 - not an error
    """Raised instead of running the phases of a job."""

    def __init__(self, phases: list[runner.Phase]) -> None:
        super().__init__()
        self.phases = phases


def write_stage(folder: Path, manifest: dict[str, Any], **files: bytes) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    (folder / "_MANIFEST.json").write_text(json.dumps(manifest))


def phases_of_prepare(context: RunContext) -> None:
    prepare.prepare(context.config, context.run, context.inputs, context.progress)


def phases_of_embed(context: RunContext) -> None:
    write_stage(context.run.folder / "prepare", {"num_items": 150})
    write_stage(context.run.folder / "train", {}, tower__keras=b"", features__json=b"")
    embed.embed(context.config, context.run, context.progress)


def phases_of_neighbors(context: RunContext) -> None:
    export_neighbors(Release.load(GOLDEN), context.config, context.progress)


@pytest.fixture(params=[phases_of_prepare, phases_of_embed, phases_of_neighbors], ids=["prepare", "embed", "neighbors"])
def phases(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[runner.Phase]:
    """The phases of each job that uses Beam, over several units."""
    frame = pl.DataFrame({"user_id": ["u", "v"] * 50, "item_id": ["i"] * 100, "timestamp": range(100)})
    frame.write_parquet(tmp_path / "log.parquet", row_group_size=30)
    data = {"interactions": str(tmp_path / "log.parquet"), "workspace": str(tmp_path / "work")}
    export = {"to": str(tmp_path / "neighbors.parquet")}
    settings = {"data": data, "resources": {"memory_mb": 0.24}, "export": export}

    def capture(phases: list[runner.Phase], *_: object) -> None:
        raise CapturedPhases(phases)

    monkeypatch.setattr(runner, "run", capture)
    with pytest.raises(CapturedPhases) as caught:
        request.param(RunContext.from_config(parse_config(settings)))
    assert max(len(phase.units) for phase in caught.value.phases) > 1
    return caught.value.phases


def test_jobs_use_portable_transforms_only(phases: list[runner.Phase]) -> None:
    pipeline = empty_pipeline()
    runner.build_pipeline(pipeline, phases)
    visitor = visit(pipeline)
    assert visitor.rejected == []
    assert visitor.visited.count("Impulse") == 1
    assert visitor.visited.count("GroupByKey") == 2 * len(phases) - 1  # one in each phase and one between phases


def test_phases_can_be_pickled(phases: list[runner.Phase]) -> None:
    for phase in phases:
        copy = pickle.loads(pickle.dumps(phase))  # noqa: S301 - bytes of this test
        assert (copy.name, copy.units) == (phase.name, phase.units)
        assert [copy.done_file(unit) for unit in copy.units] == [phase.done_file(unit) for unit in phase.units]


class FinishesBundles(beam.DoFn):
    """Overrides `finish_bundle`."""

    def process(self, element: Any) -> Any:
        yield element

    def finish_bundle(self) -> None:
        return


NOT_PORTABLE: dict[str, Callable[[Any], object]] = {
    "Reshuffle": lambda pairs: pairs | beam.Reshuffle(),
    "Create with reshuffle": lambda pairs: pairs.pipeline | "second" >> beam.Create([1, 2, 3]),
    "CombinePerKey": lambda pairs: pairs | beam.CombinePerKey(sum),
    "side input": lambda pairs: pairs | beam.Map(lambda pair, _: pair, beam.pvalue.AsList(pairs)),
    "tagged outputs": lambda pairs: pairs | beam.ParDo(FinishesBundles()).with_outputs("other"),
    "DoFn": lambda pairs: pairs | beam.ParDo(FinishesBundles()),
    "Flatten": lambda pairs: (pairs, pairs) | beam.Flatten(),
    "WriteToText": lambda pairs: pairs | beam.io.WriteToText("out.txt"),
}


@pytest.mark.parametrize("step", NOT_PORTABLE.values(), ids=NOT_PORTABLE.keys())
def test_visitor_rejects_other_transforms(step: Callable[[Any], object]) -> None:
    pipeline = empty_pipeline()
    pairs = pipeline | beam.Create([(1, 2)], reshuffle=False) | beam.Map(lambda pair: pair)
    assert visit(pipeline).rejected == []
    step(pairs)
    assert visit(pipeline).rejected != []


def test_only_the_beam_package_imports_beam() -> None:
    (folder,) = pipelines.__path__
    importers = {
        path.relative_to(folder).as_posix()
        for path in Path(folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(name.name.startswith("apache_beam") for name in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("apache_beam"))
    }
    assert importers == {f"beam/{name}.py" for name in ("loopback", "options", "runner", "worker_pool")}


# --- running phases


def done_file(folder: Path, phase: str, unit: int) -> Path:
    return folder / f"{phase}-{unit}.done"


def record(folder: Path, phase: str, unit: int) -> None:
    """Append a line with the units that were done when this unit started, and mark it as done."""
    before = sorted(path.stem for path in folder.glob("*.done"))
    with (folder / f"{phase}-{unit}.log").open("a") as log:
        log.write(json.dumps(before) + "\n")
    done_file(folder, phase, unit).touch()


def fail(folder: Path, error: Exception, at: int, phase: str, unit: int) -> None:
    if unit == at:
        raise error
    record(folder, phase, unit)


def phase(folder: Path, name: str, units: int, work: Callable[..., object] = record, *args: object) -> runner.Phase:
    process = partial(work, folder, *args, name)
    return runner.Phase(name, list(range(units)), process, partial(done_file, folder, name))


def executions(folder: Path) -> dict[str, list[list[str]]]:
    """Return the units that were done before each execution of each unit."""
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.log")}


@every_profile
def test_runs_units_once_and_phases_in_order(tmp_path: Path, profile: Profile) -> None:
    sizes = {"first": 5, "second": 1, "third": 3}
    phases = [phase(tmp_path, *size) for size in sizes.items()]
    runner.run(phases, BeamConfig(profile=profile, workers=3), ignore_progress)
    log = executions(tmp_path)
    assert sorted(log) == sorted(f"{name}-{unit}" for name, size in sizes.items() for unit in range(size))
    previous: set[str] = set()
    for name, size in sizes.items():
        current = {f"{name}-{unit}" for unit in range(size)}
        for unit in current:
            (before,) = log[unit]
            assert set(before) - current == previous
        previous |= current


def wait_for_another_unit(folder: Path, phase: str, unit: int) -> None:
    """Wait until another unit of the phase has started, then mark this unit as done."""
    (folder / f"{phase}-{unit}.started").touch()
    deadline = time.monotonic() + 30
    while len(list(folder.glob(f"{phase}-*.started"))) < 2:
        if time.monotonic() > deadline:
            raise StageError("no other unit started")
        time.sleep(0.01)
    done_file(folder, phase, unit).touch()


def test_threads_run_the_units_of_a_phase_in_parallel(tmp_path: Path) -> None:
    phases = [phase(tmp_path, name, 8, wait_for_another_unit) for name in ("first", "second")]
    runner.run(phases, BeamConfig(profile="local-threads", workers=2), ignore_progress)


@every_profile
def test_skips_units_that_are_done(tmp_path: Path, profile: Profile) -> None:
    done_file(tmp_path, "first", 1).touch()
    done_file(tmp_path, "first", 3).touch()
    done_file(tmp_path, "second", 0).touch()
    phases = [phase(tmp_path, "first", 4), phase(tmp_path, "second", 2)]
    runner.run(phases, BeamConfig(profile=profile, workers=2), ignore_progress)
    assert sorted(executions(tmp_path)) == ["first-0", "first-2", "second-1"]


@every_profile
@pytest.mark.parametrize("error", [InputError("log.csv: «ü»\nsecond line"), StageError("too few"), ReleaseError("")])
def test_error_of_a_unit_keeps_its_type_and_message(
    tmp_path: Path, profile: Profile, error: errors.RecsysError
) -> None:
    phases = [phase(tmp_path, "first", 3, fail, error, 2), phase(tmp_path, "second", 2)]
    with pytest.raises(errors.RecsysError) as caught:
        runner.run(phases, BeamConfig(profile=profile, workers=2), ignore_progress)
    assert (type(caught.value), str(caught.value)) == (type(error), str(error))
    assert not any(unit.startswith("second") for unit in executions(tmp_path))


def test_unknown_item_error_of_a_unit_keeps_its_message(tmp_path: Path) -> None:
    phases = [phase(tmp_path, "first", 2, fail, UnknownItemError("i7"), 1)]
    with pytest.raises(UnknownItemError) as caught:
        runner.run(phases, BeamConfig(), ignore_progress)
    assert str(caught.value) == str(UnknownItemError("i7"))


def test_other_exceptions_are_not_converted(tmp_path: Path) -> None:
    failing = phase(tmp_path, "first", 2, fail, ZeroDivisionError("division by zero"), 0)
    with pytest.raises(Exception, match="division by zero") as caught:
        runner.run([failing], BeamConfig(), ignore_progress)
    assert not isinstance(caught.value, errors.RecsysError)


def test_resumes_with_the_unfinished_units_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(StageError):
        runner.run([phase(tmp_path, "first", 3, fail, StageError("not yet"), 1)], BeamConfig(), ignore_progress)
    before = set(executions(tmp_path))
    runner.run([phase(tmp_path, "first", 3)], BeamConfig(), ignore_progress)
    log = executions(tmp_path)
    assert set(log) == {"first-0", "first-1", "first-2"}
    assert {unit: len(times) for unit, times in log.items()} == dict.fromkeys(log, 1)
    assert "first-1" not in before
