"""prepare: build catalog, sequences and pairs from interactions and items.

The phases exchange data through files, so memory is bounded by the size of a unit, not by the log or the catalog:

1. interactions   a unit of the interactions -> its usable rows and item ids; its dead letters
2. items          a unit of the items        -> its usable rows; its dead letters
3. ranges         samples of the ids         -> ranges of item ids (`pipelines.prepare.id_ranges`)
4. catalog        a range of ids             -> a part of the catalog; the ranks of the ids of each unit
5. numbered       a unit of the interactions -> its rows with item numbers, by shard of users
6. sequences      a shard of users           -> their items, oldest first; counts of pairs and followers, by range
7. pairs          a range of items           -> one row per anchor; the interactions and followers of each item
8. similar        a range of anchors         -> one row per anchor (`pipelines.prepare.similar_pairs`)
9. labeled        the labeled pairs, if any  -> the labeled pairs with item numbers; their dead letters

Each row that is read is used, filtered by a rule, or a dead letter with a reason; the row account must add up.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.beam import runner
from pipelines.context.input_files import InputFiles
from pipelines.context.input_units import plan_units
from pipelines.context.progress import Progress
from pipelines.prepare import phases, row_account, similar_pairs
from pipelines.prepare.job import Job
from pipelines.reports import data_report
from recsys.config.sections import Config
from recsys.data import followers, item_users
from recsys.data.catalog import fingerprint
from recsys.data.interaction_rules import REPEATED_ITEM
from recsys.data.splits import DAY_S, time_cut
from recsys.errors import InputError
from recsys.release.formats import CATALOG, FOLLOWERS, ITEM_USERS
from recsys.release.runs import Run

STAGE = "prepare"
SEQUENCES, PAIRS, SIMILAR_PAIRS = "sequences", "pairs", "similar_pairs"
LABELED_PAIRS, DEAD_LETTERS = "labeled_pairs.parquet", "dead_letters.parquet"
"""Names of outputs in the folder of the stage: three folders and two files."""

WORK, REMOVED_WORK = ".work", ".removed-work"
"""Name of the folder with the files that the phases exchange, and its name while it is removed."""

MIN_ITEMS = MIN_USERS = 2
"""Minimum size of a log for training."""


def prepare(config: Config, run: Run, inputs: InputFiles, progress: Progress) -> dict[str, Any]:
    """Run the stage unless it is done, and return its manifest.

    Raises:
        InputError: a file is invalid, or there are too few data for training.
        StageError: there are too many dead letters, or a row account does not add up.
    """
    if run.done(STAGE):
        return run.manifest(STAGE)
    with (
        progress.stage(STAGE) as advance,
        run.stage(STAGE, str(config.resources.rows_per_unit)) as (folder, manifest),
    ):
        job = plan(config, inputs, folder)
        interactions, shards = [unit.number for unit in job.interactions], list(range(job.shards))
        steps = [
            job.phase("interactions", interactions, phases.read_interactions),
            job.phase("items", [unit.number for unit in job.items], phases.read_items),
            job.phase("ranges", [0], phases.choose_ranges),
            job.phase("catalog", shards, phases.build_catalog),
            job.phase("numbered", interactions, phases.assign_item_numbers),
            job.phase("sequences", shards, phases.build_sequences),
            job.phase("pairs", shards, phases.merge_pairs),
            job.phase("similar", shards, similar_pairs.associate),
            job.phase("labeled", [0], phases.read_labeled_pairs),
        ]
        runner.run([step for step in steps if step.units], config.beam, advance)
        manifest.update(commit(job, folder))
        data_report.write(config, run, folder, manifest, SEQUENCES)
        num_rows = manifest["account"]["interactions"]["read"]
        advance(1, 1, f"{num_rows:,} interactions, {manifest['num_items']:,} items, {manifest['num_pairs']:,} pairs")
    return run.manifest(STAGE)


def plan(config: Config, inputs: InputFiles, out: Path) -> Job:
    """Divide the input into units, choose the number of shards, and create the folders."""
    work = out / WORK
    shutil.rmtree(out / REMOVED_WORK, ignore_errors=True)
    rows_per_unit = config.resources.rows_per_unit
    interactions, items, labeled = (
        plan_units(sources, rows_per_unit) for sources in (inputs.interactions, inputs.items, inputs.labeled_pairs)
    )
    for folder in (work, out / SEQUENCES, out / PAIRS, out / SIMILAR_PAIRS):
        folder.mkdir(exist_ok=True)
    max_rows = max(sum(unit.rows for unit in units) for units in (interactions, items))
    outputs = out / SEQUENCES, out / PAIRS, out / SIMILAR_PAIRS, out / LABELED_PAIRS
    return Job(config, interactions, items, labeled, work, *outputs, max(1, round(max_rows / rows_per_unit)))


def commit(job: Job, out: Path) -> dict[str, Any]:
    """Check the row account, write catalog and dead letters, remove the exchanged files; return the manifest."""
    accounts = _close_accounts(job)
    sequences, merged_pairs = job.entries("sequences"), job.entries("pairs")
    share_in_window = similar_pairs.share_in_window(job)
    num_users, num_items = sum(entry["users"] for entry in sequences), job.first_item_numbers[-1]
    filtered = {rule: rows for rule, rows in accounts["interactions"]["filtered"].items() if rule != REPEATED_ITEM}
    hint = "".join(f" Filtered out: {rows:,} rows: {rule}." for rule, rows in filtered.items())
    if num_items < MIN_ITEMS:
        raise InputError(f"the catalog must contain at least {MIN_ITEMS} items. Received: {num_items}.{hint}")
    if num_users < MIN_USERS:
        raise InputError(f"interactions must have at least {MIN_USERS} users. Received: {num_users}.{hint}")
    times = time_cut(job.newest, job.config.evaluate)
    if times is not None and not sum(entry["in_validation_fit"] for entry in sequences):
        days = (job.newest - min(entry["oldest"] for entry in job.entries("interactions"))) / DAY_S
        raise InputError(
            "evaluate.validation_days and evaluate.test_days must leave interactions to train on. Received: "
            f"{job.config.evaluate.validation_days:g} and {job.config.evaluate.test_days:g} days of a log of "
            f"{days:.1f} days."
        )
    parts = sorted(job.work.glob("counted-*.parquet"))
    pl.scan_parquet(parts).sink_parquet(out / CATALOG)
    item_ids = (item_id for part in parts for item_id in pl.read_parquet(part, columns=["item_id"])["item_id"])
    catalog_fingerprint = fingerprint(item_ids)
    job.dead_letters("items", "catalog", "interactions", "numbered", "labeled").sink_parquet(out / DEAD_LETTERS)
    item_users.build(sorted(job.sequences.iterdir()), num_items, out / ITEM_USERS)
    users_before_test = sum(entry["users_before_test"] for entry in sequences)
    followers.save(users_before_test, sorted(job.work.glob("followers-*.parquet")), out / FOLLOWERS)
    job.work.rename(out / REMOVED_WORK)  # atomic: a killed job must not resume from a part of the files
    shutil.rmtree(out / REMOVED_WORK)
    return {
        "num_users": num_users,
        "num_items": num_items,
        "num_pairs": sum(entry["pairs"] for entry in merged_pairs),
        "over_max_user_interactions": {
            "users": sum(entry["users_over"] for entry in sequences),
            "interactions": sum(entry["rows_over"] for entry in sequences),
        },
        "over_max_item_pairs": {
            "items": sum(entry["items_over"] for entry in merged_pairs),
            "pairs": sum(entry["pairs_over"] for entry in merged_pairs),
        },
        "copied_days": _copied_days(sequences),
        "time_cut": times,
        "catalog_fingerprint": catalog_fingerprint,
        "account": accounts,
        "sequences": sorted(path.name for path in job.sequences.iterdir()),
        "pairs": sorted(path.name for path in job.pairs.iterdir()),
        "similar_pairs": sorted(path.name for path in job.similar_pairs.iterdir()),
        "share_in_window": round(share_in_window, 4),
    }


def _close_accounts(job: Job) -> dict[str, Any]:
    """Return the row accounts of all tables."""
    interactions, sequences = job.entries("interactions"), job.entries("sequences")
    filtered: Counter[str] = Counter()
    for entry in (*interactions, *sequences):
        filtered.update(entry["filtered"])
    max_ratio = job.config.prepare.max_dead_letter_ratio
    accounts = {}
    if job.items:
        accounts["items"] = row_account.close_account(
            job.items,
            job.dead_letters("items", "catalog"),
            max_ratio,
            read=sum(entry["read"] for entry in job.entries("items")),
            used=job.first_item_numbers[-1],
            filtered={},
        )
    accounts["interactions"] = row_account.close_account(
        job.interactions,
        job.dead_letters("interactions", "numbered"),
        max_ratio,
        read=sum(entry["read"] for entry in interactions),
        used=sum(entry["used"] for entry in sequences),
        filtered=filtered,
    )
    if job.labeled:
        (labeled,) = job.entries("labeled")
        accounts["labeled_pairs"] = row_account.close_account(
            job.labeled,
            job.dead_letters("labeled"),
            max_ratio,
            read=labeled["read"],
            used=labeled["used"],
            filtered={},
        )
    return accounts


def _copied_days(entries: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Return the numbers of rows and copies, over all shards, of each day that has copies."""
    days: dict[str, list[int]] = {}
    for entry in entries:
        for day, counts in entry["copies"].items():
            days[day] = [total + count for total, count in zip(days.get(day, [0, 0]), counts, strict=True)]
    return {day: {"rows": rows, "copies": copies} for day, (rows, copies) in sorted(days.items()) if copies}
