"""The phases of prepare, and what their units share. `pipelines.prepare.stage` says what each is for, and runs them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.beam import runner
from pipelines.context.input_units import Unit
from pipelines.context.raw_rows import RawRows
from pipelines.context.readers import read_unit
from pipelines.prepare import id_ranges as numbering
from pipelines.prepare import row_account as account
from pipelines.prepare import shuffle
from pipelines.prepare.id_ranges import Ranges
from pipelines.prepare.row_account import LETTER
from recsys.config.sections import Config
from recsys.data import cooccurrence, pairs
from recsys.data.labeled_pairs import SCHEMA as LABELED_SCHEMA
from recsys.data.labeled_pairs import check_labeled_pairs
from recsys.data.sequences import Sequences, group_by_user, sort_interactions
from recsys.data.splits import Split, time_cut
from recsys.data.storage import atomic_write
from recsys.data.validation import EARLIEST, SCHEMA, SEEN_BEFORE, apply_event_weights, check_interactions, check_items

UNKNOWN_ITEM = "item_id is not in the catalog"


@dataclass(frozen=True)
class Job:
    """What the units of one prepare job share; travels to the workers."""

    config: Config
    interactions: list[Unit]
    items: list[Unit]
    labeled: list[Unit]
    work: Path
    """Folder of what the phases hand on."""
    sequences: Path
    pairs: Path
    labeled_pairs: Path
    """Where the results go: two folders and a file."""
    shards: int
    """Of users, and as many ranges of items."""

    def entry(self, phase: str, unit: int) -> Path:
        """The file that says that a unit is finished, and what it counted."""
        return self.work / f"{phase}-{unit:05d}.json"

    def phase(self, name: str, units: list[int], work: Callable[[Job, int], None]) -> runner.Phase:
        """A phase of this job."""
        return runner.Phase(name, units, partial(work, self), partial(self.entry, name))

    def entries(self, phase: str) -> list[dict[str, Any]]:
        """What the units of a phase counted, in order."""
        return [json.loads(path.read_text()) for path in sorted(self.work.glob(f"{phase}-*.json"))]

    def finish(self, phase: str, unit: int, **counted: Any) -> None:
        """Write a unit's entry, after all its other files."""
        with atomic_write(self.entry(phase, unit)) as draft:
            draft.write_text(json.dumps(counted))

    def file(self, name: str, unit: int) -> Path:
        """A file that a unit hands on."""
        return self.work / f"{name}-{unit:05d}.arrow"

    def chunks(self, units: list[Unit], number: int) -> Iterator[RawRows]:
        """The rows of a unit, as many at once as a unit should have."""
        return read_unit(units[number], self.config.prepare.rows_per_unit)

    def bury(self, letters: pl.DataFrame, phase: str, unit: int, chunk: int = 0) -> None:
        """Keep the dead letters of a unit, or of a chunk of it."""
        letters.write_parquet(self.work / f"dead-{phase}-{unit:05d}-{chunk:05d}.parquet")

    def letters(self, *phases: str) -> pl.LazyFrame:
        """Dead letters of some phases, in the order of their units."""
        paths = [path for phase in phases for path in sorted(self.work.glob(f"dead-{phase}-*.parquet"))]
        return pl.scan_parquet(paths) if paths else pl.LazyFrame(schema=LETTER)

    @property
    def ranges(self) -> Path:
        """The ranges of item ids; known after the phase `cut`."""
        return self.work / "ranges.json"

    @property
    def bases(self) -> list[int]:
        """First item number of each range, and the number of items; known after the phase `number`."""
        return list(accumulate((entry["used"] for entry in self.entries("number")), initial=0))

    @property
    def newest(self) -> float:
        """Time of the newest interaction, in seconds; known after the phase `check`."""
        return float(max(entry["newest"] for entry in self.entries("check")))


def check(job: Job, unit: int) -> None:
    """Phase 1: read a unit of the interactions; hand on its usable rows with the place of their id among its ids."""
    source = job.interactions[unit].source
    factors, promised = job.config.prepare.event_weights, job.config.contracts.interactions
    as_of = job.config.prepare.as_of
    counted = {"read": 0, "later": 0, "unweighed": 0, "newest": EARLIEST, "oldest": np.inf}
    samples = []
    with (
        closing(shuffle.Writer(job.file("checked", unit))) as handed_on,
        closing(shuffle.Writer(job.file("ids", unit))) as ids_file,
    ):
        for chunk, raw in enumerate(job.chunks(job.interactions, unit)):
            checked = check_interactions(raw.frame, source, events=bool(factors), contracts=promised)
            job.bury(account.letters_of(checked.rejects, raw, source), "check", unit, chunk)
            known = checked.rows.filter(pl.col("timestamp") < as_of.timestamp()) if as_of else checked.rows
            weighed = apply_event_weights(known, factors) if factors else known
            ids = weighed["item_id"].unique().sort()
            places = weighed["item_id"].rank("dense").cast(pl.UInt32) - 1
            handed_on.write(
                weighed.drop("item_id").with_columns(row=raw.row_numbers.gather(weighed["row"]), place=places)
            )
            ids_file.write(ids.to_frame())
            samples.append(numbering.sample(ids))
            counted["read"] += raw.frame.height + raw.malformed.height
            counted["later"] += checked.rows.height - known.height
            counted["unweighed"] += known.height - weighed.height
            times = weighed["timestamp"].to_numpy()
            counted["newest"] = times.max(initial=counted["newest"])
            counted["oldest"] = times.min(initial=counted["oldest"])
    job.finish("check", unit, **counted, samples=samples)


def describe(job: Job, unit: int) -> None:
    """Phase 2: read a unit of the items; hand on its usable rows, sorted by id."""
    source, read, samples = job.items[unit].source, 0, []
    with closing(shuffle.Writer(job.file("described", unit))) as handed_on:
        for chunk, raw in enumerate(job.chunks(job.items, unit)):
            checked = check_items(raw.frame, job.config.items, source, job.config.contracts.items)
            job.bury(account.letters_of(checked.rejects, raw, source), "describe", unit, chunk)
            rows = checked.rows.with_columns(row=raw.row_numbers.gather(checked.rows["row"]))
            rows = rows.with_columns(source=pl.lit(source)).sort("item_id")
            handed_on.write(rows)
            samples.append(numbering.sample(rows["item_id"]))
            read += raw.frame.height + raw.malformed.height
    job.finish("describe", unit, read=read, samples=samples)


def cut_ids(job: Job, _: int) -> None:
    """Phase 3: ranges of ids: of the items, or without them of what was touched."""
    entries = job.entries("describe" if job.items else "check")
    Ranges.of([tuple(each) for entry in entries for each in entry["samples"]], job.shards).save(job.ranges)
    job.finish("cut", 0)


def number(job: Job, part: int) -> None:
    """Phase 4: the items of one range of ids, and their numbers within the range for each unit."""
    ranges = Ranges.load(job.ranges)
    touched = [[*_within(job.file("ids", unit.number), ranges, part)] for unit in job.interactions]
    if job.items:
        described = [rows for unit in job.items for rows in _within(job.file("described", unit.number), ranges, part)]
        everything = pl.concat(described)
        first = everything["item_id"].is_first_distinct()  # within a chunk it was seen already
        rows = everything.filter(first).drop("row", "source")
        job.bury(account.letters_for(everything.filter(~first), SEEN_BEFORE), "number", part)
    else:
        rows = pl.concat([ids for unit in touched for ids in unit]).unique()
        rows = rows.with_columns(title=pl.lit(None, pl.String))
    rows = rows.sort("item_id")
    rows.write_parquet(job.work / f"catalog-{part:05d}.parquet")
    numbers = rows.select("item_id").with_row_index("number")
    with closing(shuffle.Writer(job.file("numbers", part))) as handed_on:
        for ids in (ids for unit in touched for ids in unit):
            handed_on.write(ids.join(numbers, on="item_id", how="left", maintain_order="left").select("number"))
    job.finish("number", part, used=rows.height)


def _within(path: Path, ranges: Ranges, part: int) -> Iterator[pl.DataFrame]:
    """Of each batch of a file, sorted by `item_id`, the rows of one range of ids."""
    file = shuffle.batches(path)
    for chunk in range(file.num_record_batches):
        batch = file.get_batch(chunk)
        rows = ranges.within(batch.column("item_id"), part)
        yield shuffle.as_frame(batch.slice(rows.start, rows.stop - rows.start))


def place(job: Job, unit: int) -> None:
    """Phase 5: give the rows of one unit item numbers, and put them into the shard of their user."""
    source, unknown = job.interactions[unit].source, 0
    before = sum(len(entry["samples"]) for entry in job.entries("check")[:unit])
    checked, ids = shuffle.batches(job.file("checked", unit)), shuffle.batches(job.file("ids", unit))
    numbers = [shuffle.batches(job.file("numbers", part)) for part in range(job.shards)]
    with closing(shuffle.Writer(job.file("placed", unit))) as handed_on:
        for chunk in range(checked.num_record_batches):
            rows = shuffle.as_frame(checked.get_batch(chunk))
            named = shuffle.as_frame(ids.get_batch(chunk))
            ranked = [
                shuffle.as_frame(file.get_batch(before + chunk))["number"].cast(pl.Int64) + base
                for file, base in zip(numbers, job.bases, strict=False)
            ]
            found = named.with_columns(item_number=pl.concat(ranked).cast(pl.Int32))[rows["place"]]
            rows = rows.drop("place").hstack(found)
            lost = rows.filter(pl.col("item_number").is_null()).select("row", *SCHEMA, source=pl.lit(source))
            job.bury(account.letters_for(lost, UNKNOWN_ITEM), "place", unit, chunk)
            unknown += lost.height
            known = rows.drop("item_id", "row").filter(pl.col("item_number").is_not_null())
            users = (known["user_id"].hash(0) % job.shards).to_numpy()
            handed_on.spread(known, users, job.shards)
    job.finish("place", unit, unknown=unknown)


def sequence(job: Job, shard: int) -> None:
    """Phase 6: order one shard of users by time, write their sequences, and count their pairs."""
    files = [job.file("placed", unit.number) for unit in job.interactions]
    known = pl.concat([rows for path in files for rows in shuffle.read(path, shard, job.shards)])
    kept = sort_interactions(known)
    users = group_by_user(kept)
    users.write_parquet(job.sequences / f"part-{shard:05d}.parquet")
    bases, newest = job.bases, job.newest
    split = Split(Sequences.from_frame(users), time_cut(newest, job.config.evaluate))

    items, times = np.unique(split.sequences.items[split.known_before("test")], return_counts=True)
    with closing(shuffle.Writer(job.file("touched", shard))) as handed_on:
        handed_on.spread(pl.DataFrame({"item_number": items, "times": times}), _part(items, bases), job.shards)
    both = cooccurrence.count_pairs(split, kept["weight"].to_numpy(), bases[-1], job.config.prepare, newest)
    if not job.config.prepare.directed:
        both = cooccurrence.mirror(both)
    with closing(shuffle.Writer(job.file("counted", shard))) as handed_on:
        handed_on.spread(both, _part(both["anchor"].to_numpy(), bases), job.shards)
    over = split.sequences.lengths - job.config.prepare.max_user_interactions
    job.finish(
        "sequence",
        shard,
        users_over=int((over > 0).sum()),
        rows_over=int(over[over > 0].sum()),
        repeats=known.height - kept.height,
        copies=_copies(known),
        used=kept.height,
        users=users.height,
        before_validation=int(split.known_before("validation").sum()),
    )


def _copies(rows: pl.DataFrame) -> dict[str, list[int]]:
    """Day -> its rows, and those of them that repeat user, item and time of another: what was delivered twice."""
    distinct = pl.struct("user_id", "item_number", "timestamp").n_unique()
    by_day = rows.group_by(day=pl.from_epoch(pl.col("timestamp").cast(pl.Int64)).dt.date()).agg(
        rows=pl.len(), copies=pl.len() - distinct
    )
    return {day.isoformat(): [count, copies] for day, count, copies in by_day.sort("day").iter_rows()}


def _part(items: NDArray[np.int32], bases: list[int]) -> NDArray[np.intp]:
    """The range of each item number."""
    return np.searchsorted(bases, items, side="right") - 1


def merge(job: Job, part: int) -> None:
    """Phase 7: sum pairs and touches of one range of items over all users."""
    shards = range(job.shards)
    counted = [rows for shard in shards for rows in shuffle.read(job.file("counted", shard), part, job.shards)]
    merged = cooccurrence.group_by_anchor(pl.concat(counted), job.config.prepare.max_item_pairs)
    pairs.write(merged, job.pairs / f"part-{part:05d}.parquet")

    touched = [rows for shard in shards for rows in shuffle.read(job.file("touched", shard), part, job.shards)]
    catalog = pl.read_parquet(job.work / f"catalog-{part:05d}.parquet")
    interactions = np.zeros(catalog.height, np.int64)
    for rows in touched:
        interactions[rows["item_number"].to_numpy() - job.bases[part]] += rows["times"].to_numpy()
    catalog.with_columns(interactions=interactions).write_parquet(job.work / f"touched-{part:05d}.parquet")
    left_out = merged["left_out"]
    job.finish(
        "merge",
        part,
        pairs=int(merged["size"].sum()),
        items_over=int((left_out > 0).sum()),
        pairs_over=int(left_out.sum()),
    )


def label(job: Job, _: int) -> None:
    """Phase 8: pairs that people judged, with item numbers."""
    read, pieces = 0, [pl.DataFrame(schema={"first": pl.Int32, "second": pl.Int32, "same": pl.Boolean})]
    for unit in job.labeled:
        for chunk, raw in enumerate(job.chunks(job.labeled, unit.number)):
            read += raw.frame.height + raw.malformed.height
            checked = check_labeled_pairs(raw.frame, unit.source)
            letters = account.letters_of(checked.rejects, raw, unit.source)
            rows = checked.rows.with_columns(
                row=raw.row_numbers.gather(checked.rows["row"]), source=pl.lit(unit.source)
            )
            numbers = _numbers(job, pl.concat([rows["item_a"], rows["item_b"]]).unique())
            for column, name in (("item_a", "first"), ("item_b", "second")):
                rows = rows.join(
                    numbers.rename({"item_id": column, "number": name}), on=column, how="left", maintain_order="left"
                )
            known = pl.col("first").is_not_null() & pl.col("second").is_not_null()
            lost = account.letters_for(rows.filter(~known).select("source", "row", *LABELED_SCHEMA), UNKNOWN_ITEM)
            job.bury(pl.concat([letters, lost]), "label", unit.number, chunk)
            pieces.append(rows.filter(known).select(pl.col("first", "second").cast(pl.Int32), "same"))
    labeled = pl.concat(pieces)
    labeled.write_parquet(job.labeled_pairs)
    job.finish("label", 0, read=read, used=labeled.height)


def _numbers(job: Job, ids: pl.Series) -> pl.DataFrame:
    """Those of some ids that the catalog holds, with their number; the catalog passes by in pieces."""
    catalog = pl.scan_parquet(sorted(job.work.glob("catalog-*.parquet"))).select("item_id")
    wanted = ids.alias("item_id").to_frame().lazy()
    return catalog.with_row_index("number").join(wanted, on="item_id", how="semi").collect(engine="streaming")
