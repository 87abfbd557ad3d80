"""Measure the time of this library relative to plain code that does the same work.

    python -m benchmarks.speed [--json OUT]

Both sides are measured in turn, and the table contains the median of the ratios. The start of Python and imports are
not measured.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from annoy import AnnoyIndex
from numpy.typing import NDArray

from benchmarks.command import FIGURES, parser, temporary_folder
from benchmarks.table import ROUNDS, Table, timed
from pipelines.context.run_context import RunContext
from pipelines.prepare import stage as prepare
from pipelines.stages import embed
from recsys.config.loading import parse_config
from recsys.config.sections import BeamConfig, IndexConfig, ItemsConfig, PrepareConfig, ResourcesConfig, TowerConfig
from recsys.data.catalog import Catalog
from recsys.features.encoding import Features
from recsys.index import annoy_index
from recsys.index.distances import COSINE
from recsys.index.embeddings import Vectors
from recsys.index.neighbors import WIDTH, exact_neighbors
from recsys.index.recall import tune_search_k
from recsys.retrieval.engine import Engine
from recsys.retrieval.query import Condition, Query, WeightedItem
from recsys.testing import synthetic

ROWS, USERS, ITEMS = 1_000_000, 50_000, 20_000
EMBEDDED = 100_000
INDEXED, DIMENSION, QUERIES, K = 100_000, 128, 2_000, 10
GROUPS = 20
"""Groups of items; a filter selects one."""


def prepare_against_polars(table: Table, folder: Path) -> None:
    """Compare the stage `prepare` with one Polars query that counts the same pairs."""
    path = synthetic.interactions(folder / "interactions.parquet", ROWS, USERS, ITEMS)
    window = PrepareConfig().window

    def library() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as workspace:
            config = parse_config({"data": {"interactions": str(path), "workspace": workspace}})
            context = RunContext.from_config(config)
            return timed(lambda: prepare.prepare(context.config, context.run, context.inputs, context.progress))

    def plain() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            return timed(lambda: plain_prepare(path, window, Path(out)))

    table.compare(f"prepare, {ROWS:,} interactions", 5, library, plain)


def plain_prepare(path: Path, window: int, out: Path) -> None:
    """Write the sequences and the symmetric pair weights of a file, with all rows in the memory of one process."""
    rows = pl.read_parquet(path)
    numbers = rows.select(pl.col("item_id").unique().sort()).with_row_index("item")
    ordered = rows.join(numbers, on="item_id").sort("user_id", "timestamp")
    ordered.group_by("user_id", maintain_order=True).agg("item").write_parquet(out / "sequences.parquet")
    gaps = [
        ordered.lazy()
        .select(
            pl.col("item").alias("anchor"),
            pl.col("item").shift(-gap).over("user_id").alias("positive"),
            pl.lit(1.0 / gap).alias("weight"),
        )
        .drop_nulls()
        .filter(pl.col("anchor") != pl.col("positive"))
        for gap in range(1, window + 1)
    ]
    # sum each pair once and mirror the sums, which halves the number of rows to group
    summed = (
        pl.concat(gaps)
        .with_columns(pl.min_horizontal("anchor", "positive"), positive=pl.max_horizontal("anchor", "positive"))
        .group_by("anchor", "positive")
        .agg(pl.col("weight").sum())
    )
    mirrored = summed.select(pl.col("positive").alias("anchor"), pl.col("anchor").alias("positive"), "weight")
    (
        pl.concat([summed, mirrored])
        .sort("anchor", "positive")
        .group_by("anchor", maintain_order=True)
        .agg("positive", "weight")
        .collect()
        .write_parquet(out / "pairs.parquet")
    )


def embed_against_loop(
    table: Table, folder: Path, items: int = EMBEDDED, limit: float = 1 / 0.7, rounds: int = ROUNDS
) -> None:
    """Compare the stage `embed` with a plain loop over the traced tower."""
    from recsys.model import tower

    columns = ItemsConfig(title="title", categorical=("category",), multi_categorical=("tags",), numeric=("price",))
    frame = synthetic.catalog(items).with_columns(interactions=pl.lit(1, pl.Int64))
    features = Features.fit(frame, columns, TowerConfig(), np.ones(items, np.int64))
    model = tower.build(features, TowerConfig(), seed=1)
    frame.write_parquet(folder / "catalog.parquet")
    features.save(folder / "features.json")
    model.save(folder / "tower.keras")

    def job(out: Path) -> embed.Job:
        names = ("catalog.parquet", "tower.keras", "features.json")
        catalog, saved, vocabularies = (folder / name for name in names)
        return embed.Job(catalog, saved, vocabularies, out, out / "embeddings.npy", ResourcesConfig().embedded_items)

    def library() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            beam = BeamConfig()
            return timed(lambda: embed.embed_items(job(Path(out)), items, TowerConfig().dimension, beam, _ignore))

    def library_from_files() -> float:
        embed._encoder.cache_clear()  # noqa: SLF001 - as in a new process
        return library()

    def plain() -> float:
        return timed(lambda: np.save(folder / "plain.npy", encode(features.transform(read()))))

    def plain_from_files() -> float:
        def work() -> None:
            loaded_features = Features.load(folder / "features.json")
            encode_loaded = tower.make_encoder(tower.load(folder / "tower.keras"), embed.BATCH_SIZE)
            np.save(folder / "plain.npy", encode_loaded(loaded_features.transform(read())))

        return timed(work)

    def read() -> pl.DataFrame:
        return pl.read_parquet(folder / "catalog.parquet")

    encode = tower.make_encoder(model, embed.BATCH_SIZE)
    table.compare(f"embed, {items:,} items, files to file", limit, library_from_files, plain_from_files, rounds)
    table.compare(f"embed, {items:,} items, tower already loaded", None, library, plain, rounds)


def search_against_annoy(table: Table, folder: Path) -> None:
    """Compare the build of an index, and single queries, with plain Annoy."""
    vectors = synthetic.vectors(INDEXED, DIMENSION)
    settings = IndexConfig()

    def plain_build() -> float:
        def work() -> None:
            plain_index = AnnoyIndex(DIMENSION, "angular")
            plain_index.set_seed(annoy_index.SEED)
            for number, vector in enumerate(vectors):
                plain_index.add_item(number, vector)
            plain_index.build(settings.n_trees, annoy_index.N_JOBS)
            plain_index.save(str(folder / "plain_index.ann"))

        return timed(work)

    def library_build() -> float:
        return timed(lambda: annoy_index.build(vectors, settings, folder / "library.ann"))

    table.compare(f"index, build of {INDEXED:,} x {DIMENSION}", 1.1, library_build, plain_build)
    index = annoy_index.build(vectors, settings, folder / "index.ann")
    search_k = tune_search_k(index, vectors, settings).search_k
    queries_against_annoy(table, vectors, index, search_k)


def queries_against_annoy(table: Table, vectors: Vectors, index: annoy_index.Index, search_k: int) -> None:
    """Compare `Engine.search` with plain Annoy: one item, a filter that every twentieth item passes, two items.

    A filter of plain code is a comparison in NumPy. The search of plain Annoy inspects twice as many nodes until its
    recall reaches the target of an index; the engine compares with all items that pass, and with all items for two.
    """
    group = np.random.default_rng(1).integers(0, GROUPS, INDEXED)
    frame = pl.DataFrame({"item_id": [f"item-{number:06d}" for number in range(INDEXED)], "group": group.astype(str)})
    catalog = Catalog(frame.with_columns(title=pl.col("item_id"), interactions=pl.lit(1)))
    item_numbers = np.random.default_rng(0).choice(INDEXED, QUERIES, replace=False)
    neighbors = np.zeros((INDEXED, WIDTH), np.int32)
    neighbors[item_numbers] = exact_neighbors(vectors, item_numbers, WIDTH, COSINE)
    engine = Engine("r", catalog, vectors, index, neighbors=neighbors)
    where = (Condition("group", any_of=("0",)),)
    kinds = {
        "one item": ([[number] for number in item_numbers], ()),
        f"one item, {1 / GROUPS:.0%} filter": ([[number] for number in item_numbers], where),
        f"two items, {1 / GROUPS:.0%} filter": (np.split(item_numbers, QUERIES // 2), where),
        "two items": (np.split(item_numbers, QUERIES // 2), ()),
    }
    for name, (rows, conditions) in kinds.items():
        items = [[int(number) for number in row] for row in rows]
        queries = [
            Query(items=tuple(WeightedItem(catalog.item_ids[n]) for n in row), where=conditions, k=K) for row in items
        ]
        plain = PlainSearch(index, vectors, group if conditions else None, search_k)
        plain.tune(items, [{neighbor.item_id for neighbor in engine.search(q).neighbors} for q in queries], catalog)
        table.compare(
            f"{name}, {K} neighbors, p50 of {len(items):,}, search_k {plain.search_k}",
            1.5,
            lambda queries=queries: p50(engine.search, queries),  # type: ignore[misc]
            lambda items=items, plain=plain: p50(plain, items),  # type: ignore[misc]
        )


class PlainSearch:
    """The nearest items of one or two items by Annoy alone, filtered by NumPy."""

    def __init__(
        self, index: annoy_index.Index, vectors: Vectors, group: NDArray[np.int64] | None, search_k: int
    ) -> None:
        (self.annoy,) = index._shards  # noqa: SLF001 - without the methods of this library
        self.vectors = vectors
        self.group = group
        self.search_k = search_k

    def __call__(self, items: list[int]) -> list[int]:
        """Return the `K` items nearest to an item or to the mean of two."""
        count = (1 if self.group is None else 2 * GROUPS) * K + len(items)
        if len(items) == 1:
            nearest, _ = self.annoy.get_nns_by_item(items[0], count, self.search_k, True)
        else:
            mean = self.vectors[items].mean(axis=0).tolist()
            nearest, _ = self.annoy.get_nns_by_vector(mean, count, self.search_k, True)
        if self.group is not None:
            mask = self.group == 0
            numbers = np.array(nearest)
            nearest = numbers[mask[numbers]].tolist()
        return [number for number in nearest if number not in items][:K]

    def tune(self, items: list[list[int]], expected: list[set[str]], catalog: Catalog) -> None:
        """Double `search_k` until the search returns the target share of the expected items."""
        target = IndexConfig().recall_target
        while True:
            shared = [
                len({catalog.item_ids[number] for number in self(row)} & ids)
                for row, ids in zip(items, expected, strict=True)
            ]
            if sum(shared) >= target * sum(map(len, expected)):
                return
            self.search_k *= 2


def p50(search: Callable[[Any], object], queries: Sequence[Any]) -> float:
    """Return the median time of a query in seconds."""
    return statistics.median(timed(lambda query=query: search(query)) for query in queries)  # type: ignore[misc]


def _ignore(*_: object) -> None:
    """Ignore progress."""


def fill(table: Table, folder: Path) -> None:
    """Add all rows to the table."""
    for benchmark in (prepare_against_polars, embed_against_loop, search_against_annoy):
        benchmark(table, folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as a program."""
    arguments = parser(__doc__, FIGURES).parse_args(argv)
    with temporary_folder() as folder:
        table = Table()
        fill(table, folder)
        table.write(arguments.json)


if __name__ == "__main__":
    main()
