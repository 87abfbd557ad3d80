"""The phases of prepare, as functions of a job and the number of a unit. `pipelines.prepare.stage` runs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.prepare import row_account, shuffle
from pipelines.prepare.id_ranges import IdRanges, sample_ids
from pipelines.prepare.job import Job
from pipelines.prepare.similar_pairs import count_pairs_of_histories
from recsys.data import cooccurrence, followers, pairs
from recsys.data.interaction_rules import BURST, REPEATED_ITEM, apply_row_rules, drop_bursts
from recsys.data.labeled_pairs import SCHEMA as LABELED_SCHEMA
from recsys.data.labeled_pairs import check_labeled_pairs
from recsys.data.sequences import Sequences, group_by_user, sort_interactions
from recsys.data.splits import Split, time_cut
from recsys.data.validation import (
    DUPLICATE_ITEM,
    EARLIEST,
    SCHEMA,
    check_interactions,
    check_items,
)
from recsys.errors import InputError

UNKNOWN_ITEM = "item_id is not in the catalog"
MAX_ITEM_PAIRS = 10_000
"""Maximum number of positives per item; those with the largest weights are used.

Without a limit, an item in every history would be paired with all items. The manifest counts the omitted pairs.
"""


def read_interactions(job: Job, unit: int) -> None:
    """Phase 1: check a unit of the interactions; write its usable rows and its distinct item ids.

    In the rows, the item id is replaced by `id_position`, its position among the sorted ids of the chunk.
    """
    source = job.interactions[unit].source
    settings, column_rules = job.config.prepare, job.config.column_rules.interactions
    events, ratings = bool(settings.event_weights), settings.min_rating is not None
    counts = {"read": 0, "newest": EARLIEST, "oldest": np.inf}
    filtered: Counter[str] = Counter()
    has_ratings, samples = False, []
    with (
        closing(shuffle.Writer(job.exchange_file("interactions", unit))) as rows_file,
        closing(shuffle.Writer(job.exchange_file("ids", unit))) as ids_file,
    ):
        for chunk, raw in enumerate(job.chunks(job.interactions, unit)):
            checked = check_interactions(raw.frame, source, events=events, ratings=ratings, column_rules=column_rules)
            letters = row_account.dead_letters_of_chunk(checked.rejects, raw, source)
            job.write_dead_letters(letters, "interactions", unit, chunk)
            used, filtered_rows = apply_row_rules(checked.rows, settings)
            ids = used["item_id"].unique().sort()
            id_position = used["item_id"].rank("dense").cast(pl.UInt32) - 1
            row = raw.row_numbers.gather(used["row"])
            rows_file.write(used.drop("item_id").with_columns(row=row, id_position=id_position))
            ids_file.write(ids.to_frame())
            samples.append(sample_ids(ids))
            counts["read"] += raw.frame.height + raw.malformed.height
            has_ratings |= "rating" in raw.frame.columns
            filtered.update(filtered_rows)
            times = used["timestamp"].to_numpy()
            counts["newest"] = times.max(initial=counts["newest"])
            counts["oldest"] = times.min(initial=counts["oldest"])
    job.finish("interactions", unit, **counts, filtered=filtered, has_ratings=has_ratings, samples=samples)


def read_items(job: Job, unit: int) -> None:
    """Phase 2: check a unit of the items; write its usable rows, sorted by id."""
    source, read, samples = job.items[unit].source, 0, []
    with closing(shuffle.Writer(job.exchange_file("items", unit))) as rows_file:
        for chunk, raw in enumerate(job.chunks(job.items, unit)):
            checked = check_items(raw.frame, job.config.items, source, job.config.column_rules.items)
            letters = row_account.dead_letters_of_chunk(checked.rejects, raw, source)
            job.write_dead_letters(letters, "items", unit, chunk)
            rows = checked.rows.with_columns(row=raw.row_numbers.gather(checked.rows["row"]))
            rows = rows.with_columns(source=pl.lit(source)).sort("item_id")
            rows_file.write(rows)
            samples.append(sample_ids(rows["item_id"]))
            read += raw.frame.height + raw.malformed.height
    job.finish("items", unit, read=read, samples=samples)


def choose_ranges(job: Job, _: int) -> None:
    """Phase 3: choose the ranges of item ids, from the item table or, without one, from the interactions."""
    if job.config.prepare.min_rating is not None and not any(e["has_ratings"] for e in job.entries("interactions")):
        sources = row_account.file_names(job.interactions)
        raise InputError(
            f"prepare.min_rating requires the column 'rating' in the interactions. Received: none in {sources}. "
            "Add the column, or remove the setting."
        )
    entries = job.entries("items" if job.items else "interactions")
    samples = [tuple(sample) for entry in entries for sample in entry["samples"]]
    IdRanges.from_samples(samples, job.shards).save(job.ranges)
    job.finish("ranges", 0)


def build_catalog(job: Job, part: int) -> None:
    """Phase 4: collect the items of one range of ids, and write the ranks of the ids of each chunk of interactions.

    The rank of an item is its item number relative to the first item of the range.
    """
    ranges = IdRanges.load(job.ranges)
    id_chunks = [
        ids for unit in job.interactions for ids in _rows_within(job.exchange_file("ids", unit.number), ranges, part)
    ]
    if job.items:
        files = [job.exchange_file("items", unit.number) for unit in job.items]
        rows = pl.concat([rows for path in files for rows in _rows_within(path, ranges, part)])
        is_first = rows["item_id"].is_first_distinct()  # `check_items` finds duplicates only within a chunk
        duplicates = row_account.dead_letters_of_rows(rows.filter(~is_first), DUPLICATE_ITEM)
        job.write_dead_letters(duplicates, "catalog", part)
        items = rows.filter(is_first).drop("row", "source")
    else:
        items = pl.concat(id_chunks).unique().with_columns(title=pl.lit(None, pl.String))
    items = items.sort("item_id")
    items.write_parquet(job.work / f"catalog-{part:05d}.parquet")
    ranks = items.select("item_id").with_row_index("rank")
    with closing(shuffle.Writer(job.exchange_file("ranks", part))) as ranks_file:
        for ids in id_chunks:
            ranks_file.write(ids.join(ranks, on="item_id", how="left", maintain_order="left").select("rank"))
    job.finish("catalog", part, used=items.height)


def _rows_within(path: Path, ranges: IdRanges, part: int) -> Iterator[pl.DataFrame]:
    """Yield the rows of one range of ids from each batch of a file, which is sorted by `item_id`."""
    file = shuffle.open_batches(path)
    for chunk in range(file.num_record_batches):
        batch = file.get_batch(chunk)
        rows = ranges.rows_within(batch.column("item_id"), part)
        yield shuffle.to_frame(batch.slice(rows.start, rows.stop - rows.start))


def assign_item_numbers(job: Job, unit: int) -> None:
    """Phase 5: add item numbers to the rows of a unit of the interactions, and distribute them to shards of users."""
    source, num_unknown = job.interactions[unit].source, 0
    earlier_chunks = sum(len(entry["samples"]) for entry in job.entries("interactions")[:unit])
    rows_file = shuffle.open_batches(job.exchange_file("interactions", unit))
    ids_file = shuffle.open_batches(job.exchange_file("ids", unit))
    rank_files = [shuffle.open_batches(job.exchange_file("ranks", part)) for part in range(job.shards)]
    first_item_numbers = job.first_item_numbers
    with closing(shuffle.Writer(job.exchange_file("numbered", unit))) as numbered_file:
        for chunk in range(rows_file.num_record_batches):
            rows = shuffle.to_frame(rows_file.get_batch(chunk))
            ids = shuffle.to_frame(ids_file.get_batch(chunk))
            item_numbers = [
                shuffle.to_frame(file.get_batch(earlier_chunks + chunk))["rank"].cast(pl.Int64) + first
                for file, first in zip(rank_files, first_item_numbers, strict=False)
            ]
            numbered_ids = ids.with_columns(item_number=pl.concat(item_numbers).cast(pl.Int32))
            rows = rows.drop("id_position").hstack(numbered_ids[rows["id_position"]])
            unknown = rows.filter(pl.col("item_number").is_null()).select("row", *SCHEMA, source=pl.lit(source))
            job.write_dead_letters(row_account.dead_letters_of_rows(unknown, UNKNOWN_ITEM), "numbered", unit, chunk)
            num_unknown += unknown.height
            usable = rows.drop("item_id", "row").filter(pl.col("item_number").is_not_null())
            shard = (usable["user_id"].hash(0) % job.shards).to_numpy()
            numbered_file.spread(usable, shard, job.shards)
    job.finish("numbered", unit, unknown=num_unknown)


def build_sequences(job: Job, shard: int) -> None:
    """Phase 6: sort the interactions of a shard of users by time, write the sequences, and count the pairs."""
    files = [job.exchange_file("numbered", unit.number) for unit in job.interactions]
    all_rows = pl.concat([rows for path in files for rows in shuffle.read(path, shard, job.shards)])
    rows = drop_bursts(all_rows, job.config.prepare.max_per_second)
    interactions = sort_interactions(rows)
    users = group_by_user(interactions)
    users.write_parquet(job.sequences / f"part-{shard:05d}.parquet")
    first_item_numbers, newest, config = job.first_item_numbers, job.newest, job.config.prepare
    split = Split(Sequences.from_frame(users), time_cut(newest, job.config.evaluate))

    known = split.training_mask("test")
    known_users = split.sequences.users[known]
    item_counts = (
        pl.DataFrame({"item_number": split.sequences.items[known], "user": known_users})
        .group_by("item_number")
        .agg(interactions=pl.len().cast(pl.Int64), users=pl.col("user").n_unique().cast(pl.Int64))
        .sort("item_number")
    )
    with closing(shuffle.Writer(job.exchange_file("item-counts", shard))) as counts_file:
        counts_file.spread(
            item_counts, _range_of(item_counts["item_number"].to_numpy(), first_item_numbers), job.shards
        )
    pair_counts = cooccurrence.count_pairs(split, interactions["weight"].to_numpy(), config, newest)
    if not config.directed:
        pair_counts = cooccurrence.mirror(pair_counts)
    with closing(shuffle.Writer(job.exchange_file("pair-counts", shard))) as pairs_file:
        anchor_range = _range_of(pair_counts["anchor"].to_numpy(), first_item_numbers)
        pairs_file.spread(pair_counts, anchor_range, job.shards)
    follower_counts = followers.count_followers(split, config)
    with closing(shuffle.Writer(job.exchange_file("follower-counts", shard))) as followers_file:
        item_range = _range_of(follower_counts["item"].to_numpy(), first_item_numbers)
        followers_file.spread(follower_counts, item_range, job.shards)
    history_pairs, in_window = count_pairs_of_histories(split, config)
    excess = split.sequences.lengths - config.max_user_interactions
    job.finish(
        "sequences",
        shard,
        users_over=int((excess > 0).sum()),
        rows_over=int(excess[excess > 0].sum()),
        filtered={BURST: all_rows.height - rows.height, REPEATED_ITEM: rows.height - interactions.height},
        copies=_copies_by_day(rows),
        used=interactions.height,
        users=users.height,
        users_before_test=len(np.unique(known_users)),
        history_pairs=history_pairs,
        history_pairs_in_window=in_window,
        in_validation_fit=int(split.training_mask("validation").sum()),
    )


def _copies_by_day(rows: pl.DataFrame) -> dict[str, list[int]]:
    """Return for each day the number of rows, and of rows with the same user, item and time as another row."""
    num_distinct = pl.struct("user_id", "item_number", "timestamp").n_unique()
    by_day = rows.group_by(day=pl.from_epoch(pl.col("timestamp").cast(pl.Int64)).dt.date()).agg(
        rows=pl.len(), copies=pl.len() - num_distinct
    )
    return {day.isoformat(): [count, copies] for day, count, copies in by_day.sort("day").iter_rows()}


def _range_of(item_numbers: NDArray[np.int32], first_item_numbers: list[int]) -> NDArray[np.intp]:
    """Return the number of the range of each item number."""
    return np.searchsorted(first_item_numbers, item_numbers, side="right") - 1


def merge_pairs(job: Job, part: int) -> None:
    """Phase 7: sum the counts of pairs, followers and interactions of one range of items over all shards of users."""
    pair_counts = _read_counts(job, "pair-counts", part)
    merged = cooccurrence.group_by_anchor(pair_counts, MAX_ITEM_PAIRS)
    pairs.write(merged, job.pairs / f"part-{part:05d}.parquet")

    catalog = pl.read_parquet(job.work / f"catalog-{part:05d}.parquet")
    first = job.first_item_numbers[part]
    item_counts = _read_counts(job, "item-counts", part)
    interactions, users = np.zeros((2, catalog.height), np.int64)
    rows = item_counts["item_number"].to_numpy() - first
    np.add.at(interactions, rows, item_counts["interactions"].to_numpy())
    np.add.at(users, rows, item_counts["users"].to_numpy())
    catalog.with_columns(interactions=interactions).write_parquet(job.work / f"counted-{part:05d}.parquet")
    follower_counts = _read_counts(job, "follower-counts", part)
    grouped = followers.group_by_item(follower_counts, users, first)
    grouped.write_parquet(job.work / f"followers-{part:05d}.parquet")
    dropped_positives = merged["dropped_positives"]
    job.finish(
        "pairs",
        part,
        pairs=int(merged["size"].sum()),
        items_over=int((dropped_positives > 0).sum()),
        pairs_over=int(dropped_positives.sum()),
    )


def _read_counts(job: Job, name: str, part: int) -> pl.DataFrame:
    """Return the counts of one range of items from all shards of users."""
    files = [job.exchange_file(name, shard) for shard in range(job.shards)]
    return pl.concat([rows for path in files for rows in shuffle.read(path, part, job.shards)])


def read_labeled_pairs(job: Job, _: int) -> None:
    """Phase 8: check the labeled pairs, and write them with item numbers."""
    read, parts = 0, [pl.DataFrame(schema={"first": pl.Int32, "second": pl.Int32, "same": pl.Boolean})]
    for unit in job.labeled:
        for chunk, raw in enumerate(job.chunks(job.labeled, unit.number)):
            read += raw.frame.height + raw.malformed.height
            checked = check_labeled_pairs(raw.frame, unit.source)
            rejected = row_account.dead_letters_of_chunk(checked.rejects, raw, unit.source)
            rows = checked.rows.with_columns(
                row=raw.row_numbers.gather(checked.rows["row"]), source=pl.lit(unit.source)
            )
            item_numbers = _find_item_numbers(job, pl.concat([rows["item_a"], rows["item_b"]]).unique())
            for id_column, column in (("item_a", "first"), ("item_b", "second")):
                renamed = item_numbers.rename({"item_id": id_column, "item_number": column})
                rows = rows.join(renamed, on=id_column, how="left", maintain_order="left")
            in_catalog = pl.col("first").is_not_null() & pl.col("second").is_not_null()
            unknown = rows.filter(~in_catalog).select("source", "row", *LABELED_SCHEMA)
            letters = pl.concat([rejected, row_account.dead_letters_of_rows(unknown, UNKNOWN_ITEM)])
            job.write_dead_letters(letters, "labeled", unit.number, chunk)
            parts.append(rows.filter(in_catalog).select(pl.col("first", "second").cast(pl.Int32), "same"))
    labeled = pl.concat(parts)
    labeled.write_parquet(job.labeled_pairs)
    job.finish("labeled", 0, read=read, used=labeled.height)


def _find_item_numbers(job: Job, item_ids: pl.Series) -> pl.DataFrame:
    """Return `item_id` and `item_number` of the ids that are in the catalog, which is streamed from disk."""
    catalog = pl.scan_parquet(sorted(job.work.glob("catalog-*.parquet"))).select("item_id")
    ids = item_ids.alias("item_id").to_frame().lazy()
    return catalog.with_row_index("item_number").join(ids, on="item_id", how="semi").collect(engine="streaming")
