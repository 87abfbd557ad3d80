"""prepare: interactions and items -> catalog, sequences, pairs, dead letters and the row account.

Phases over files, so that memory follows the size of a unit, and neither the log nor the catalog:

1. check      a unit of the interactions -> its usable rows, its item ids; its dead letters
2. describe   a unit of the items        -> its usable rows; its dead letters
3. cut        samples of the ids         -> ranges of ids (`pipelines.prepare.stage.id_ranges`)
4. number     a range of ids             -> a part of the catalog; the numbers of the ids of each unit
5. place      a unit of the interactions -> its rows with item numbers, by shard of users
6. sequence   a shard of users           -> their items oldest first; pair weights, by range of anchors
7. merge      a range of anchors         -> one row an anchor; how often each item was touched
8. label      pairs that people judged, if there are any -> the same with item numbers

Every row read is used, filtered by a rule, or a dead letter with its reason; the account must add up.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.beam import runner
from pipelines.context.input_files import InputFiles
from pipelines.context.input_units import plan_units
from pipelines.context.progress import Progress
from pipelines.prepare import phases as preparing
from pipelines.prepare import row_account as account
from pipelines.prepare.phases import Job
from pipelines.reports import data_report as data_page
from recsys.config.sections import Config
from recsys.data import item_users
from recsys.data.catalog import fingerprint
from recsys.data.splits import DAY_S, time_cut
from recsys.data.validation import LATER, UNWEIGHED
from recsys.errors import InputError
from recsys.release.formats import CATALOG, ITEM_USERS
from recsys.release.runs import Run

STAGE = "prepare"
SEQUENCES, PAIRS, LABELED, DEAD_LETTERS = "sequences", "pairs", "labeled.parquet", "dead_letters.parquet"

WORK, SPENT = ".work", ".spent"
"""Folder of what the phases hand on, and its name while it is being removed."""

MIN_ITEMS = MIN_USERS = 2
"""Below, nothing can be like another thing, and nobody can have touched both."""

REPEAT = "repeats the user's previous item"


def prepare(config: Config, run: Run, inputs: InputFiles, progress: Progress) -> dict[str, Any]:
    """Do the stage if it is not done, and return its manifest.

    Raises:
        InputError: a file cannot be used, or holds too little to learn from.
        StageError: more dead letters than the config allows, or an account that does not add up.
    """
    if run.done(STAGE):
        return run.manifest(STAGE)
    with (
        progress.stage(STAGE) as advance,
        run.stage(STAGE, str(config.prepare.rows_per_unit)) as (folder, manifest),
    ):
        job = plan(config, inputs, folder)
        logs, shards = [unit.number for unit in job.interactions], list(range(job.shards))
        phases = [
            job.phase("check", logs, preparing.check),
            job.phase("describe", [unit.number for unit in job.items], preparing.describe),
            job.phase("cut", [0], preparing.cut_ids),
            job.phase("number", shards, preparing.number),
            job.phase("place", logs, preparing.place),
            job.phase("sequence", shards, preparing.sequence),
            job.phase("merge", shards, preparing.merge),
            job.phase("label", [0], preparing.label),
        ]
        runner.run([phase for phase in phases if phase.units], config.beam, advance)
        manifest.update(commit(job, folder))
        data_page.write(config, run, folder, manifest, SEQUENCES)
        counted = manifest["account"]["interactions"]
        advance(
            1, 1, f"{counted['read']:,} interactions, {manifest['num_items']:,} items, {manifest['num_pairs']:,} pairs"
        )
    return run.manifest(STAGE)


def plan(config: Config, inputs: InputFiles, out: Path) -> Job:
    """Cut the input into units and choose the number of shards."""
    work = out / WORK
    shutil.rmtree(out / SPENT, ignore_errors=True)
    rows_per_unit = config.prepare.rows_per_unit
    interactions, items, labeled = (
        plan_units(sources, rows_per_unit) for sources in (inputs.interactions, inputs.items, inputs.labeled_pairs)
    )
    for folder in (work, out / SEQUENCES, out / PAIRS):
        folder.mkdir(exist_ok=True)
    most = max(sum(unit.rows for unit in units) for units in (interactions, items))
    results = out / SEQUENCES, out / PAIRS, out / LABELED
    return Job(config, interactions, items, labeled, work, *results, max(1, round(most / rows_per_unit)))


def commit(job: Job, out: Path) -> dict[str, Any]:
    """Check the account, write catalog and dead letters, drop the work files; the stage's manifest."""
    checks, sequenced, merged = job.entries("check"), job.entries("sequence"), job.entries("merge")
    settled = _settle(job)
    num_users, num_items = sum(entry["users"] for entry in sequenced), job.bases[-1]
    filtered = {rule: rows for rule, rows in settled["interactions"]["filtered"].items() if rule != REPEAT}
    left_out = "".join(f" Left out were {rows:,} rows: {rule}." for rule, rows in filtered.items())
    if num_items < MIN_ITEMS:
        raise InputError(f"the catalog must hold at least {MIN_ITEMS} items. Received: {num_items}.{left_out}")
    if num_users < MIN_USERS:
        raise InputError(f"interactions must be of at least {MIN_USERS} users. Received: {num_users}.{left_out}")
    instants = time_cut(job.newest, job.config.evaluate)
    if instants is not None and not sum(entry["before_validation"] for entry in sequenced):
        days = (job.newest - min(entry["oldest"] for entry in checks)) / DAY_S
        raise InputError(
            "evaluate.validation_days and evaluate.test_days must leave interactions to train on. Received: "
            f"{job.config.evaluate.validation_days:g} and {job.config.evaluate.test_days:g} days, held out of a log "
            f"of {days:.1f} days."
        )
    parts = sorted(job.work.glob("touched-*.parquet"))
    pl.scan_parquet(parts).sink_parquet(out / CATALOG)
    ids = (item_id for part in parts for item_id in pl.read_parquet(part, columns=["item_id"])["item_id"])
    identity = fingerprint(ids)
    job.letters("describe", "number", "check", "place", "label").sink_parquet(out / DEAD_LETTERS)
    item_users.build(sorted(job.sequences.iterdir()), num_items, out / ITEM_USERS)
    job.work.rename(out / SPENT)  # at once: of some of these files a killed job could not be gone on with
    shutil.rmtree(out / SPENT)
    return {
        "num_users": num_users,
        "num_items": num_items,
        "num_pairs": sum(entry["pairs"] for entry in merged),
        "over_max_user_interactions": {
            "users": sum(entry["users_over"] for entry in sequenced),
            "interactions": sum(entry["rows_over"] for entry in sequenced),
        },
        "over_max_item_pairs": {
            "items": sum(entry["items_over"] for entry in merged),
            "pairs": sum(entry["pairs_over"] for entry in merged),
        },
        "copied_days": _copied_days(sequenced),
        "cut": instants,
        "catalog_fingerprint": identity,
        "account": settled,
        "sequences": sorted(path.name for path in job.sequences.iterdir()),
        "pairs": sorted(path.name for path in job.pairs.iterdir()),
    }


def _settle(job: Job) -> dict[str, Any]:
    """The accounts of all input."""
    checks, sequenced = job.entries("check"), job.entries("sequence")
    limit = job.config.prepare.max_dead_letter_ratio
    settled = {}
    if job.items:
        read = sum(entry["read"] for entry in job.entries("describe"))
        settled["items"] = account.settle(
            job.items, job.letters("describe", "number"), limit, read=read, used=job.bases[-1], filtered={}
        )
    settled["interactions"] = account.settle(
        job.interactions,
        job.letters("check", "place"),
        limit,
        read=sum(entry["read"] for entry in checks),
        used=sum(entry["used"] for entry in sequenced),
        filtered={
            LATER: sum(entry["later"] for entry in checks),
            UNWEIGHED: sum(entry["unweighed"] for entry in checks),
            REPEAT: sum(entry["repeats"] for entry in sequenced),
        },
    )
    if job.labeled:
        labeled = job.entries("label")[0]
        settled["labeled_pairs"] = account.settle(
            job.labeled, job.letters("label"), limit, read=labeled["read"], used=labeled["used"], filtered={}
        )
    return settled


def _copied_days(entries: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Days with copies among their rows, over all shards."""
    days: dict[str, list[int]] = {}
    for entry in entries:
        for day, counted in entry["copies"].items():
            days[day] = [before + more for before, more in zip(days.get(day, [0, 0]), counted, strict=True)]
    return {day: {"rows": rows, "copies": copies} for day, (rows, copies) in sorted(days.items()) if copies}
