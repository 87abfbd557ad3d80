"""prepare: interactions and items -> catalogue, sequences, pairs, dead letters and the row account.

Five phases over files, so that memory follows the size of a unit and not of the log:

1. check      a unit of the input -> its usable rows, by shard of users; its dead letters
2. number     all units           -> the catalogue
3. sequence   a shard of users    -> their items oldest first; pair weights, by shard of anchors
4. merge      a shard of anchors  -> one row an anchor
5. label      pairs that people judged, if there are any -> the same with item numbers

Every row read is used, filtered by a rule, or a dead letter with its reason; the account must add up.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines import data_page, io, runner
from pipelines.night import Night, command, main
from recsys import pairs
from recsys.catalogue import Catalogue
from recsys.config import Config
from recsys.errors import InputError, StageError
from recsys.interactions import (
    EARLIEST,
    SCHEMA,
    SEEN_BEFORE,
    UNWEIGHED,
    as_json,
    check_interactions,
    check_items,
    weigh_events,
)
from recsys.labelled import SCHEMA as LABELLED_SCHEMA
from recsys.labelled import check_labelled
from recsys.release import CATALOGUE
from recsys.sequences import Sequences, arrange, by_user
from recsys.splitting import DAY_S, Split, cut

STAGE = "prepare"
SEQUENCES, PAIRS, LABELLED, DEAD_LETTERS = "sequences", "pairs", "labelled.parquet", "dead_letters.parquet"

WORK, SPENT = ".work", ".spent"
"""Folder of what the phases hand on, and its name while it is being removed."""

MIN_ITEMS = MIN_USERS = 2
"""Below, nothing can be like another thing, and nobody can have touched both."""

EXAMPLE_CHARACTERS = 300

REPEAT = "repeats the user's previous item"
UNKNOWN_ITEM = "item_id is not in the catalogue"

LETTER = {"source": pl.String, "row": pl.UInt32, "reason": pl.String, "content": pl.String}
"""A dead letter: the file, the row in it from 0 (a CSV's header not counted), why, and the row as JSON."""


@dataclass(frozen=True)
class Job:
    """What the units of one prepare job share; travels to the workers."""

    config: Config
    interactions: list[io.Unit]
    items: list[io.Unit]
    labelled: list[io.Unit]
    work: Path
    out: Path
    shards: int
    """Of users, and as many of anchors."""

    def entry(self, phase: str, unit: int) -> Path:
        """The file that says that a unit is finished, and what it counted."""
        return self.work / f"{phase}-{unit:05d}.json"

    def phase(self, name: str, units: list[int], work: Callable[[Job, int], None]) -> runner.Phase:
        """A phase of this job."""
        return runner.Phase(name, units, partial(work, self), partial(self.entry, name))

    def entries(self, phase: str) -> list[dict[str, Any]]:
        """What the units of a phase counted, in order."""
        return [json.loads(path.read_text()) for path in sorted(self.work.glob(f"{phase}-*.json"))]

    @property
    def newest(self) -> float:
        """Time of the newest interaction, in seconds; known after the phase `check`."""
        return float(max(entry["newest"] for entry in self.entries("check")))

    def letters(self, phase: str) -> pl.DataFrame:
        """Dead letters of a phase, in the order of its units."""
        return pl.concat([pl.read_parquet(path) for path in sorted(self.work.glob(f"dead-{phase}-*.parquet"))])

    def checked(self, unit: int, shard: int) -> Path:
        """Usable rows of a unit, of a shard of users."""
        return self.work / f"checked-{shard:05d}-{unit:05d}.arrow"

    def counted(self, users: int, anchors: int) -> Path:
        """Pairs of a shard of users, of a shard of anchors."""
        return self.work / f"counted-{anchors:05d}-{users:05d}.arrow"

    def finish(self, phase: str, unit: int, **counted: Any) -> None:
        """Write a unit's entry, after all its other files."""
        path = self.entry(phase, unit)
        path.with_suffix(".tmp").write_text(json.dumps(counted))
        path.with_suffix(".tmp").replace(path)


def prepare(night: Night) -> dict[str, Any]:
    """Do the stage if it is not done, and return its manifest.

    Raises:
        InputError: a file cannot be used, or holds too little to learn from.
        StageError: more dead letters than the config allows, or an account that does not add up.
    """
    if night.run.done(STAGE):
        return night.run.manifest(STAGE)
    with (
        night.report.stage(STAGE) as advance,
        night.run.stage(STAGE, str(night.config.prepare.rows_per_unit)) as (folder, manifest),
    ):
        job = plan(night, folder)
        shards = list(range(job.shards))
        phases = [
            job.phase("check", [unit.number for unit in job.interactions], check),
            job.phase("number", [0], number_items),
            job.phase("sequence", shards, sequence),
            job.phase("merge", shards, merge),
            job.phase("label", [0], label),
        ]
        runner.run(phases, night.config.beam, advance)
        manifest.update(commit(job))
        data_page.write(night, folder, manifest, SEQUENCES)
        account = manifest["account"]["interactions"]
        advance(
            1, 1, f"{account['read']:,} interactions, {manifest['num_items']:,} items, {manifest['num_pairs']:,} pairs"
        )
    return night.run.manifest(STAGE)


def plan(night: Night, out: Path) -> Job:
    """Cut the input into units and choose the number of shards."""
    work = out / WORK
    shutil.rmtree(out / SPENT, ignore_errors=True)
    rows_per_unit = night.config.prepare.rows_per_unit
    interactions = io.plan(night.interactions, rows_per_unit)
    for folder in (work, out / SEQUENCES, out / PAIRS):
        folder.mkdir(exist_ok=True)
    shards = max(1, round(sum(unit.rows for unit in interactions) / rows_per_unit))
    items, labelled = io.plan(night.items, rows_per_unit), io.plan(night.labelled, rows_per_unit)
    return Job(night.config, interactions, items, labelled, work, out, shards)


def check(job: Job, number: int) -> None:
    """Phase 1: read one unit, put usable rows into the shard of their user and the others aside."""
    unit = job.interactions[number]
    raw = io.read(unit)
    factors = job.config.prepare.event_weights
    promised = job.config.contracts.interactions
    checked = check_interactions(raw.frame, str(unit.path), events=bool(factors), contracts=promised)
    letters = _letters(checked.rejects, raw, str(unit.path))
    letters.write_parquet(job.work / f"dead-check-{number:05d}.parquet")
    weighed = weigh_events(checked.rows, factors) if factors else checked.rows
    rows = weighed.with_columns(row=raw.numbers.gather(weighed["row"]), shard=pl.col("user_id").hash(0) % job.shards)
    for (shard,), part in rows.partition_by("shard", as_dict=True, include_key=False).items():
        part.write_ipc(job.checked(number, shard))
    rows.select(pl.col("item_id").unique()).write_parquet(job.work / f"ids-{number:05d}.parquet")
    job.finish(
        "check",
        number,
        read=raw.frame.height + raw.broken.height,
        unweighed=checked.rows.height - rows.height,
        newest=rows["timestamp"].max() or EARLIEST,
        oldest=rows["timestamp"].min() or EARLIEST,
    )


def number_items(job: Job, _: int) -> None:
    """Phase 2: the catalogue, from the items, or without them from what was touched."""
    read = 0
    letters = [pl.DataFrame(schema=LETTER)]
    if job.items:
        usable = []
        for unit in job.items:
            raw = io.read(unit)
            read += raw.frame.height + raw.broken.height
            checked = check_items(raw.frame, job.config.items, str(unit.path), job.config.contracts.items)
            letters.append(_letters(checked.rejects, raw, str(unit.path)))
            place = raw.numbers.gather(checked.rows["row"])
            usable.append(checked.rows.with_columns(row=place, source=pl.lit(str(unit.path))))
        everything = pl.concat(usable)
        again = ~everything["item_id"].is_first_distinct()  # within a file it was seen already
        rows = everything.filter(~again).drop("row", "source")
        letters.append(_letters_of(everything.filter(again), SEEN_BEFORE))
    else:
        touched = [pl.read_parquet(path) for path in sorted(job.work.glob("ids-*.parquet"))]
        rows = pl.concat(touched).unique().with_columns(title=pl.lit(None, pl.String))
    dead = pl.concat(letters)
    dead.write_parquet(job.work / "dead-number-00000.parquet")
    rows.sort("item_id").write_parquet(job.work / CATALOGUE)
    job.finish("number", 0, read=read, used=rows.height)


def sequence(job: Job, shard: int) -> None:
    """Phase 3: order one shard of users by time, write their sequences, and count their pairs."""
    parts = {unit.number: job.checked(unit.number, shard) for unit in job.interactions}
    frames = [
        pl.read_ipc(part).select("row", *SCHEMA, unit=pl.lit(unit, pl.UInt32))
        for unit, part in parts.items()
        if part.exists()
    ]
    nothing = pl.DataFrame(schema={"row": pl.UInt32, **SCHEMA, "unit": pl.UInt32})
    rows = pl.concat([nothing, *frames])
    numbers = pl.read_parquet(job.work / CATALOGUE, columns=["item_id"]).with_row_index("item")
    rows = rows.join(numbers, on="item_id", how="left", maintain_order="left")
    paths = [str(unit.path) for unit in job.interactions]
    unknown = rows.filter(pl.col("item").is_null())
    letters = _letters_of(unknown.select("row", *SCHEMA, source=pl.lit(pl.Series(paths)).gather("unit")), UNKNOWN_ITEM)
    letters.write_parquet(job.work / f"dead-sequence-{shard:05d}.parquet")
    known = rows.filter(pl.col("item").is_not_null())
    kept = arrange(known)

    users = by_user(kept)
    users.write_parquet(job.out / SEQUENCES / f"part-{shard:05d}.parquet")
    num_items, newest = numbers.height, job.newest
    split = Split(Sequences.from_frame(users), cut(newest, job.config.evaluate))
    touched = split.sequences.items[split.known_before("test")]
    np.save(job.work / f"touched-{shard:05d}.npy", np.bincount(touched, minlength=num_items))
    both = pairs.count(split, kept["weight"].to_numpy(), num_items, job.config.prepare, newest)
    if not job.config.prepare.directed:
        both = pairs.mirror(both)
    both = both.with_columns(shard=pl.col("anchor").cast(pl.Int64) * job.shards // max(num_items, 1))
    for (anchors,), part in both.partition_by("shard", as_dict=True, include_key=False).items():
        part.write_ipc(job.counted(shard, anchors))
    over = split.sequences.lengths - job.config.prepare.max_user_interactions
    job.finish(
        "sequence",
        shard,
        users_over=int((over > 0).sum()),
        rows_over=int(over[over > 0].sum()),
        repeats=known.height - kept.height,
        used=kept.height,
        users=users.height,
        before_validation=int(split.known_before("validation").sum()),
    )


def merge(job: Job, shard: int) -> None:
    """Phase 4: sum the pairs of one shard of anchors over all users."""
    parts = [job.counted(users, shard) for users in range(job.shards)]
    frames = [pl.read_ipc(part) for part in parts if part.exists()]
    merged = pairs.by_anchor(pl.concat([pl.DataFrame(schema=pairs.SCHEMA), *frames]))
    pairs.write(merged, job.out / PAIRS / f"part-{shard:05d}.parquet")
    job.finish("merge", shard, pairs=int(merged["size"].sum()))


def label(job: Job, _: int) -> None:
    """Phase 5: pairs that people judged, with item numbers."""
    read = 0
    nothing = pl.DataFrame(schema={"first": pl.Int32, "second": pl.Int32, "same": pl.Boolean})
    pieces, letters = [nothing], [pl.DataFrame(schema=LETTER)]
    numbers = pl.read_parquet(job.work / CATALOGUE, columns=["item_id"]).with_row_index("number")
    for unit in job.labelled:
        raw = io.read(unit)
        read += raw.frame.height + raw.broken.height
        checked = check_labelled(raw.frame, str(unit.path))
        letters.append(_letters(checked.rejects, raw, str(unit.path)))
        rows = checked.rows.with_columns(row=raw.numbers.gather(checked.rows["row"]), source=pl.lit(str(unit.path)))
        for column, name in (("item_a", "first"), ("item_b", "second")):
            rows = rows.join(
                numbers.rename({"item_id": column, "number": name}), on=column, how="left", maintain_order="left"
            )
        known = pl.col("first").is_not_null() & pl.col("second").is_not_null()
        letters.append(_letters_of(rows.filter(~known).select("source", "row", *LABELLED_SCHEMA), UNKNOWN_ITEM))
        pieces.append(rows.filter(known).select(pl.col("first", "second").cast(pl.Int32), "same"))
    pl.concat(letters).write_parquet(job.work / "dead-label-00000.parquet")
    labelled = pl.concat(pieces)
    labelled.write_parquet(job.out / LABELLED)
    job.finish("label", 0, read=read, used=labelled.height)


def commit(job: Job) -> dict[str, Any]:
    """Check the account, write catalogue and dead letters, drop the work files; the stage's manifest."""
    checks, numbered, sequenced = job.entries("check"), job.entries("number")[0], job.entries("sequence")
    item_letters = job.letters("number")
    interaction_letters = pl.concat([job.letters("check"), job.letters("sequence")])
    limit = job.config.prepare.max_dead_letter_ratio
    account = {}
    if job.items:
        account["items"] = _settle(
            job.items, item_letters, limit, read=numbered["read"], used=numbered["used"], filtered={}
        )
    account["interactions"] = _settle(
        job.interactions,
        interaction_letters,
        limit,
        read=sum(entry["read"] for entry in checks),
        used=sum(entry["used"] for entry in sequenced),
        filtered={
            UNWEIGHED: sum(entry["unweighed"] for entry in checks),
            REPEAT: sum(entry["repeats"] for entry in sequenced),
        },
    )

    if job.labelled:
        labelled = job.entries("label")[0]
        account["labelled_pairs"] = _settle(
            job.labelled, job.letters("label"), limit, read=labelled["read"], used=labelled["used"], filtered={}
        )

    num_users, num_items = sum(entry["users"] for entry in sequenced), numbered["used"]
    unweighed = account["interactions"]["filtered"].get(UNWEIGHED, 0)
    left_out = f" Left out were {unweighed:,} rows: {UNWEIGHED}." if unweighed else ""
    if num_items < MIN_ITEMS:
        raise InputError(f"the catalogue must hold at least {MIN_ITEMS} items. Received: {num_items}.{left_out}")
    if num_users < MIN_USERS:
        raise InputError(f"interactions must be of at least {MIN_USERS} users. Received: {num_users}.{left_out}")
    instants = cut(job.newest, job.config.evaluate)
    if instants is not None and not sum(entry["before_validation"] for entry in sequenced):
        days = (job.newest - min(entry["oldest"] for entry in checks)) / DAY_S
        raise InputError(
            "evaluate.validation_days and evaluate.test_days must leave interactions to train on. Received: "
            f"{job.config.evaluate.validation_days:g} and {job.config.evaluate.test_days:g} days, held out of a log "
            f"of {days:.1f} days."
        )
    touched = sum(np.load(path) for path in sorted(job.work.glob("touched-*.npy")))
    catalogue = Catalogue(
        pl.read_parquet(job.work / CATALOGUE).with_columns(interactions=pl.Series(touched, dtype=pl.Int64))
    )
    catalogue.save(job.out / CATALOGUE)
    pl.concat([item_letters, interaction_letters, job.letters("label")]).write_parquet(job.out / DEAD_LETTERS)
    num_pairs = sum(entry["pairs"] for entry in job.entries("merge"))
    job.work.rename(job.out / SPENT)  # at once: of some of these files a killed job could not be gone on with
    shutil.rmtree(job.out / SPENT)
    return {
        "num_users": num_users,
        "num_items": num_items,
        "num_pairs": num_pairs,
        "over_max_user_interactions": {
            "users": sum(entry["users_over"] for entry in sequenced),
            "interactions": sum(entry["rows_over"] for entry in sequenced),
        },
        "cut": instants,
        "catalogue_fingerprint": catalogue.fingerprint,
        "account": account,
        "sequences": sorted(path.name for path in (job.out / SEQUENCES).iterdir()),
        "pairs": sorted(path.name for path in (job.out / PAIRS).iterdir()),
    }


def _letters(rejects: pl.DataFrame, raw: io.Raw, source: str) -> pl.DataFrame:
    """Dead letters of a file: rows that were rejected, and what was no row."""
    rejected = rejects.with_columns(row=raw.numbers.gather(rejects["row"]))
    both = [frame.with_columns(source=pl.lit(source)).select(*LETTER) for frame in (rejected, raw.broken)]
    return pl.concat(both)


def _letters_of(rows: pl.DataFrame, reason: str) -> pl.DataFrame:
    """Dead letters of rows that were good by themselves, with `source` and `row`."""
    return rows.select("source", "row", reason=pl.lit(reason), content=as_json(rows.drop("source", "row")))


def _settle(
    units: list[io.Unit], letters: pl.DataFrame, max_ratio: float, *, read: int, used: int, filtered: dict[str, int]
) -> dict[str, Any]:
    """The account of some files: it must add up and hold rows, few enough of them dead."""
    files = ", ".join(sorted({str(unit.path) for unit in units}))
    by_reason = dict(letters["reason"].value_counts(sort=True).iter_rows())
    account = {
        "read": read,
        "used": used,
        "filtered": {rule: rows for rule, rows in filtered.items() if rows},
        "dead_letters": by_reason,
    }
    if read != used + sum(filtered.values()) + letters.height:
        raise StageError(f"every row of {files} must be accounted for. Received: {account}.")
    if read == 0:
        raise InputError(f"{files} must hold rows. Received: none.")
    if letters.height > max_ratio * read:
        reasons = "; ".join(f"{rows:,} {reason}" for reason, rows in by_reason.items())
        example = letters.row(0, named=True)
        raise StageError(
            f"at most {max_ratio:.2%} of the rows of {files} may be unusable. "
            f"Received: {letters.height:,} of {read:,} ({reasons}), such as row {example['row']} of "
            f"{example['source']}: {example['content'][:EXAMPLE_CHARACTERS]}. "
            "Mend the input, or raise prepare.max_dead_letter_ratio."
        )
    return account


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The job by itself."""
    return command(STAGE, (__doc__ or "").splitlines()[0], prepare, argv)


if __name__ == "__main__":
    main(run)
