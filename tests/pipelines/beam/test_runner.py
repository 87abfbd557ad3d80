"""Fanning out: the graph stays within what behaves alike on every runner, and errors come back as they were."""

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

beam = runner._beam()
from apache_beam.pipeline import PipelineVisitor  # noqa: E402 - after the import that keeps Beam quiet
from apache_beam.transforms.core import CallableWrapperDoFn  # noqa: E402

Profile = Literal["local", "local-threads", "portable"]
GOLDEN = GOLDEN_RELEASES / "v2"
PROFILES: tuple[Profile, ...] = ("local", "local-threads", "portable")


def silent(*_: object, **__: object) -> None:
    """Progress that nobody sees."""


# --- the portable subset


class Portable(PipelineVisitor):
    """Walks a graph and collects what does not behave alike on every runner.

    Map and FlatMap are a ParDo around a plain function; Create is seen together with the Impulse and the two
    functions that it is made of, and with a MaybeReshuffle that is empty where no reshuffle was asked for.
    """

    PRIMITIVES = (beam.transforms.core.Impulse, beam.GroupByKey)
    COMPOSITES = ("Create", "MaybeReshuffle")

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.seen: list[str] = []

    def enter_composite_transform(self, transform_node: Any) -> None:
        # the root of the graph is the one composite without a transform
        transform = transform_node.transform
        if transform is not None and type(transform).__name__ not in self.COMPOSITES:
            self._refuse(transform_node)

    def visit_transform(self, transform_node: Any) -> None:
        transform = transform_node.transform
        self.seen.append(type(transform).__name__)
        plain_function = type(transform) is beam.ParDo and type(transform.fn) is CallableWrapperDoFn
        one_way = not transform_node.side_inputs and list(transform_node.outputs) == [None]
        if not (one_way and (plain_function or type(transform) in self.PRIMITIVES)):
            self._refuse(transform_node)

    def _refuse(self, node: Any) -> None:
        self.refused.append(f"{node.full_label}: {type(node.transform).__name__}")


def walked(pipeline: Any) -> Portable:
    visitor = Portable()
    pipeline.visit(visitor)
    return visitor


def empty_pipeline() -> Any:
    return beam.Pipeline(runner="FnApiRunner")


class Captured(Exception):  # noqa: N818 - no error, but the way out of a job
    """The phases that a job wants to have run."""

    def __init__(self, phases: list[runner.Phase]) -> None:
        super().__init__()
        self.phases = phases


def write_finished(folder: Path, manifest: dict[str, Any], **files: bytes) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    (folder / "_MANIFEST.json").write_text(json.dumps(manifest))


def phases_of_prepare(context: RunContext) -> None:
    prepare.prepare(context.config, context.run, context.inputs, context.progress)


def phases_of_embed(context: RunContext) -> None:
    write_finished(context.run.folder / "prepare", {"num_items": 150})
    write_finished(context.run.folder / "train", {}, tower__keras=b"", features__json=b"")
    embed.embed(context.config, context.run, context.progress)


def phases_of_neighbors(context: RunContext) -> None:
    export_neighbors(Release.load(GOLDEN), context.config, context.progress)


@pytest.fixture(params=[phases_of_prepare, phases_of_embed, phases_of_neighbors], ids=["prepare", "embed", "neighbors"])
def phases(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[runner.Phase]:
    """The phases of each job that uses Beam, over several units."""
    frame = pl.DataFrame({"user_id": ["u", "v"] * 50, "item_id": ["i"] * 100, "timestamp": range(100)})
    frame.write_parquet(tmp_path / "log.parquet", row_group_size=30)
    data = {"interactions": str(tmp_path / "log.parquet"), "workspace": str(tmp_path / "work")}
    exported = {"items_per_unit": 10, "to": str(tmp_path / "neighbors.parquet")}
    small = {"prepare": {"rows_per_unit": 30}, "embed": {"items_per_unit": 64}, "neighbors": exported}

    def capture(phases: list[runner.Phase], *_: object) -> None:
        raise Captured(phases)

    monkeypatch.setattr(runner, "run", capture)
    with pytest.raises(Captured) as caught:
        request.param(RunContext.from_config(parse_config({"data": data, **small})))
    assert max(len(phase.units) for phase in caught.value.phases) > 1
    return caught.value.phases


def test_the_jobs_stay_within_the_portable_subset(phases: list[runner.Phase]) -> None:
    pipeline = empty_pipeline()
    runner.build(pipeline, phases)
    visitor = walked(pipeline)
    assert visitor.refused == []
    assert visitor.seen.count("Impulse") == 1
    assert visitor.seen.count("GroupByKey") == 2 * len(phases) - 1  # one to spread each, one between them


def test_the_units_of_the_jobs_can_travel_to_other_processes(phases: list[runner.Phase]) -> None:
    for phase in phases:
        copy = pickle.loads(pickle.dumps(phase))  # noqa: S301 - our own bytes
        assert (copy.name, copy.units) == (phase.name, phase.units)
        assert [copy.done(unit) for unit in copy.units] == [phase.done(unit) for unit in phase.units]


class _Bundled(beam.DoFn):
    """Speaks at the end of a bundle."""

    def process(self, element: Any) -> Any:
        yield element

    def finish_bundle(self) -> None:
        return


NOT_PORTABLE: dict[str, Callable[[Any], object]] = {
    "Reshuffle": lambda pairs: pairs | beam.Reshuffle(),
    "Create with reshuffle": lambda pairs: pairs.pipeline | "again" >> beam.Create([1, 2, 3]),
    "CombinePerKey": lambda pairs: pairs | beam.CombinePerKey(sum),
    "side input": lambda pairs: pairs | beam.Map(lambda pair, _: pair, beam.pvalue.AsList(pairs)),
    "tags": lambda pairs: pairs | beam.ParDo(_Bundled()).with_outputs("other"),
    "DoFn": lambda pairs: pairs | beam.ParDo(_Bundled()),
    "Flatten": lambda pairs: (pairs, pairs) | beam.Flatten(),
    "WriteToText": lambda pairs: pairs | beam.io.WriteToText("nowhere"),
}


@pytest.mark.parametrize("step", NOT_PORTABLE.values(), ids=NOT_PORTABLE.keys())
def test_the_walk_refuses_what_is_outside_the_subset(step: Callable[[Any], object]) -> None:
    pipeline = empty_pipeline()
    pairs = pipeline | beam.Create([(1, 2)], reshuffle=False) | beam.Map(lambda pair: pair)
    assert walked(pipeline).refused == []
    step(pairs)
    assert walked(pipeline).refused != []


def test_only_the_runner_and_its_servers_import_beam() -> None:
    """So that no job builds a graph of its own."""
    (folder,) = pipelines.__path__
    importing = {
        path.name
        for path in Path(folder).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(name.name.startswith("apache_beam") for name in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("apache_beam"))
    }
    assert importing == {"loopback.py", "profiles.py", "runner.py", "workers.py"}


# --- running phases


def done(folder: Path, phase: str, unit: int) -> Path:
    return folder / f"{phase}-{unit}.done"


def count(folder: Path, phase: str, unit: int) -> None:
    """Write down what was finished of every phase when this unit began, and how often it was worked on."""
    before = sorted(path.stem for path in folder.glob("*.done"))
    with (folder / f"{phase}-{unit}.log").open("a") as log:
        log.write(json.dumps(before) + "\n")
    done(folder, phase, unit).touch()


def fail(folder: Path, error: Exception, at: int, phase: str, unit: int) -> None:
    if unit == at:
        raise error
    count(folder, phase, unit)


def phase(folder: Path, name: str, units: int, work: Callable[..., object] = count, *given: object) -> runner.Phase:
    return runner.Phase(name, list(range(units)), partial(work, folder, *given, name), partial(done, folder, name))


def begun(folder: Path) -> dict[str, list[list[str]]]:
    """For every unit, one list a time that it was worked on: what was finished before."""
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.log")}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_unit_is_worked_on_once_and_a_phase_begins_after_the_one_before(tmp_path: Path, profile: Profile) -> None:
    sizes = {"first": 5, "second": 1, "third": 3}
    runner.run([phase(tmp_path, *size) for size in sizes.items()], BeamConfig(profile=profile, workers=3), silent)
    log = begun(tmp_path)
    assert sorted(log) == sorted(f"{name}-{unit}" for name, size in sizes.items() for unit in range(size))
    earlier: set[str] = set()
    for name, size in sizes.items():
        own = {f"{name}-{unit}" for unit in range(size)}
        for unit in own:
            (before,) = log[unit]
            assert set(before) - own == earlier
        earlier |= own


def meet(folder: Path, phase: str, unit: int) -> None:
    """Finish only beside another unit of the phase."""
    (folder / f"{phase}-{unit}.begun").touch()
    deadline = time.monotonic() + 30
    while len(list(folder.glob(f"{phase}-*.begun"))) < 2:
        if time.monotonic() > deadline:
            raise StageError("nobody came")
        time.sleep(0.01)
    done(folder, phase, unit).touch()


def test_threads_work_on_the_units_of_every_phase_side_by_side(tmp_path: Path) -> None:
    phases = [phase(tmp_path, name, 8, meet) for name in ("first", "second")]
    runner.run(phases, BeamConfig(profile="local-threads", workers=2), silent)


@pytest.mark.parametrize("profile", PROFILES)
def test_units_that_are_done_are_skipped(tmp_path: Path, profile: Profile) -> None:
    done(tmp_path, "first", 1).touch()
    done(tmp_path, "first", 3).touch()
    done(tmp_path, "second", 0).touch()
    phases = [phase(tmp_path, "first", 4), phase(tmp_path, "second", 2)]
    runner.run(phases, BeamConfig(profile=profile, workers=2), silent)
    assert sorted(begun(tmp_path)) == ["first-0", "first-2", "second-1"]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("error", [InputError("log.csv: «ü»\nsecond line"), StageError("too few"), ReleaseError("")])
def test_an_error_of_a_unit_comes_back_with_its_own_type_and_message(
    tmp_path: Path, profile: Profile, error: errors.RecsysError
) -> None:
    phases = [phase(tmp_path, "first", 3, fail, error, 2), phase(tmp_path, "second", 2)]
    with pytest.raises(errors.RecsysError) as caught:
        runner.run(phases, BeamConfig(profile=profile, workers=2), silent)
    assert (type(caught.value), str(caught.value)) == (type(error), str(error))
    assert not any(unit.startswith("second") for unit in begun(tmp_path))


def test_an_unknown_item_in_a_unit_comes_back_with_its_own_message(tmp_path: Path) -> None:
    phases = [phase(tmp_path, "first", 2, fail, UnknownItemError("i7"), 1)]
    with pytest.raises(UnknownItemError) as caught:
        runner.run(phases, BeamConfig(), silent)
    assert str(caught.value) == str(UnknownItemError("i7"))


def test_an_error_that_is_none_of_ours_is_not_taken_for_one(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="division of nothing") as caught:
        runner.run(
            [phase(tmp_path, "first", 2, fail, ZeroDivisionError("division of nothing"), 0)], BeamConfig(), silent
        )
    assert not isinstance(caught.value, errors.RecsysError)


def test_after_an_error_the_same_phases_go_on_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StageError):
        runner.run([phase(tmp_path, "first", 3, fail, StageError("not yet"), 1)], BeamConfig(), silent)
    before = set(begun(tmp_path))
    runner.run([phase(tmp_path, "first", 3)], BeamConfig(), silent)
    log = begun(tmp_path)
    assert set(log) == {"first-0", "first-1", "first-2"}
    assert {unit: len(times) for unit, times in log.items()} == dict.fromkeys(log, 1)
    assert "first-1" not in before
