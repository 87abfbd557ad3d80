"""Regressions that occur in practice, injected into data, training or a finished release, and the gate's verdict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from pipelines.context.progress import Progress
from pipelines.context.run_context import RunContext
from pipelines.context.time_limit import TimeLimit
from pipelines.orchestration import nightly
from pipelines.orchestration.stage_table import STAGES
from pipelines.stages import promote
from recsys.config.loading import parse_config
from recsys.config.sections import Config, IndexConfig
from recsys.config.senses import Sense
from recsys.data.storage import sha256
from recsys.errors import ConfigError, RecsysError, RejectedError
from recsys.index import annoy_index, embeddings, neighbors
from recsys.index.shards import INDEX_FILE
from recsys.release.bundle import Release
from recsys.release.formats import CATALOG, EMBEDDINGS, MANIFEST, NEIGHBORS
from recsys.release.manifest import FileEntry

DAY_S, MS = 86_400, 1_000
TINY_SEARCH = 20
"""Nodes that Annoy inspects by default in an index of one tree, for twenty neighbors."""

Tables = tuple[pl.DataFrame, pl.DataFrame]
"""Interactions and items."""


# --- faults of the data


def remove_half_the_catalog(interactions: pl.DataFrame, items: pl.DataFrame, _: Config) -> Tables:
    """Remove every second item and its interactions, as an incomplete export would."""
    kept = items.sort("item_id").gather_every(2)
    return interactions.join(kept, on="item_id", how="semi", maintain_order="left"), kept


def duplicate_a_day(interactions: pl.DataFrame, items: pl.DataFrame, _: Config) -> Tables:
    """Duplicate the rows of the day with the most interactions."""
    days = interactions["timestamp"] // DAY_S
    busiest = days.value_counts(sort=True)["timestamp"][0]
    return pl.concat([interactions, interactions.filter(days == busiest)]), items


def convert_to_milliseconds(interactions: pl.DataFrame, items: pl.DataFrame, _: Config) -> Tables:
    """Convert timestamps to milliseconds."""
    return interactions.with_columns(pl.col("timestamp") * MS), items


def set_one_category(interactions: pl.DataFrame, items: pl.DataFrame, config: Config) -> Tables:
    """Set the categories of all items to those of the first, as a wrong join would."""
    columns = [*config.items.categorical, *config.items.multi_categorical]
    return interactions, items.with_columns(pl.col(column).first() for column in columns)


# --- faults of a published release


def rewrite(folder: Path, files: dict[str, Callable[[Path], None]], **manifest: Any) -> None:
    """Replace files of a release and update its manifest, so its checksums are valid."""
    content = json.loads((folder / MANIFEST).read_text()) | manifest
    for name, save in files.items():
        (folder / name).unlink()
        save(folder / name)
        content["files"][name] = FileEntry(
            bytes=(folder / name).stat().st_size, sha256=sha256(folder / name)
        ).model_dump()
    (folder / MANIFEST).write_text(json.dumps(content))


def replace_vectors(release: Release, vectors: embeddings.Vectors, space: Sense = "next") -> None:
    """Replace the embeddings of a space, its index and its neighbor table."""
    settings, distance = IndexConfig(n_trees=release.manifest.n_trees), release.space(space).distance
    rewrite(
        release.path,
        {
            f"{space}/{EMBEDDINGS}": lambda path: embeddings.save(vectors, path),
            f"{space}/{INDEX_FILE}": lambda path: _index(vectors, settings, path, release),
            f"{space}/{NEIGHBORS}": lambda path: neighbors.save_exact(vectors, path, distance),
        },
    )


def _index(vectors: embeddings.Vectors, settings: IndexConfig, path: Path, release: Release) -> None:
    annoy_index.build(vectors, settings, path, distance=release.space("next").distance)


def shuffle_embeddings(release: Release, space: Sense = "next") -> None:
    """Permute the embeddings of all items."""
    vectors = np.random.default_rng(0).permutation(np.asarray(release.spaces[space].vectors))
    replace_vectors(release, vectors, space)


def shuffle_similar_embeddings(release: Release) -> None:
    """Permute the embeddings that answer `similar`."""
    shuffle_embeddings(release, release.space_name("similar"))


def collapse_to_popularity(release: Release) -> None:
    """Move popular items toward a common direction, so they are the nearest neighbors of all items."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=release.space("next").vectors.shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    popularity = release.catalog.frame["interactions"].to_numpy()
    nearness = np.argsort(np.argsort(popularity, kind="stable")) / len(popularity)
    vectors[:, 0] += 2 * nearness**2
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    replace_vectors(release, vectors)


def build_one_tree(release: Release) -> None:
    """Build an index of one tree with a small `search_k`; the manifest keeps the recall of the previous index."""
    vectors = np.asarray(release.space("next").vectors)
    settings = IndexConfig(n_trees=1)
    entry = release.space("next").entry.model_copy(update={"search_k": TINY_SEARCH})
    rewrite(
        release.path,
        {f"next/{INDEX_FILE}": lambda path: _index(vectors, settings, path, release)},
        n_trees=1,
        spaces={
            sense: (entry if sense == "next" else space.entry).model_dump(mode="json")
            for sense, space in release.spaces.items()
        },
    )


def add_nan(release: Release) -> None:
    """Set one embedding to NaN."""
    vectors = np.array(release.space("next").vectors)
    vectors[len(vectors) // 2] = np.nan
    rewrite(release.path, {f"next/{EMBEDDINGS}": lambda path: embeddings.save(vectors, path)})


def swap_ids(release: Release) -> None:
    """Swap the two halves of the item ids, so titles and features belong to other ids."""
    frame = release.catalog.frame
    ids = frame["item_id"]
    swapped = frame.with_columns(item_id=pl.concat([ids[len(ids) // 2 :], ids[: len(ids) // 2]]))
    rewrite(release.path, {CATALOG: swapped.write_parquet})


class Regression(NamedTuple):
    """A fault to inject, and the check that must reject it."""

    name: str
    expected: str
    """The check of the gate that must fail, or a part of the error if the run fails before the gate."""
    data: Callable[[pl.DataFrame, pl.DataFrame, Config], Tables] | None = None
    settings: Sequence[str] = ()
    release: Callable[[Release], None] | None = None


STOPPED = ("train.passes=1", "train.history_passes=0")
REGRESSIONS = [
    Regression("shuffled embeddings", "tower_agreement", release=shuffle_embeddings),
    Regression("shuffled embeddings of similar", "agreement_at_10_change", release=shuffle_similar_embeddings),
    Regression("popularity collapse", "ndcg_at_20_change", release=collapse_to_popularity),
    Regression("half the catalog gone", "data_lost_items", data=remove_half_the_catalog),
    Regression("interactions of a day duplicated", "data_copied_day", data=duplicate_a_day),
    Regression("timestamps in milliseconds", "timestamp", data=convert_to_milliseconds),
    Regression("all items one category", "data_one_category", data=set_one_category),
    Regression("training stopped after one pass", "ndcg_at_20_change", settings=STOPPED),
    Regression("an index with one tree", "index_recall", release=build_one_tree),
    Regression("a NaN vector", "finite", release=add_nan),
    Regression("a swapped id map", "catalog_covered", release=swap_ids),
]


class Verdict(NamedTuple):
    """The outcome of a run."""

    promoted: bool
    failed: list[str]
    """Names of the checks that failed."""
    error: str
    """Message of the error, or empty."""
    checks: list[dict[str, Any]]

    def rejected_by(self, expected: str) -> bool:
        """Return whether this check failed, or the run failed before the gate with this text in its error."""
        return not self.promoted and (expected in self.failed if self.failed else expected in self.error)


def judge(config: Config, stage: Callable[[RunContext], dict[str, Any]]) -> Verdict:
    """Run all stages, or one of them, and return the outcome."""
    context = RunContext.from_config(config, Progress())
    try:
        with context.run.locked():
            outcome = stage(context)
    except RejectedError as error:
        checks = json.loads((context.run.folder / promote.REPORT).read_text())["checks"]
        return Verdict(False, [check["name"] for check in checks if check["verdict"] == "failed"], str(error), checks)
    except RecsysError as error:
        return Verdict(False, [], f"{type(error).__name__}: {error}", [])
    return Verdict(bool(outcome["promoted"]), [], "", outcome["checks"])


def run_all_stages(context: RunContext) -> dict[str, Any]:
    """Run all stages and return the summary."""
    summary: dict[str, Any] = {}
    nightly.run_stages(context, summary, TimeLimit())
    return summary


def publish(context: RunContext) -> None:
    """Run all stages except `promote`."""
    for name, stage in STAGES.items():
        if name != promote.STAGE:
            stage(context)


def inject(regression: Regression, champion: Config, challenger: Config, folder: Path) -> Verdict:
    """Inject a regression into a copy of the champion's workspace, and return the outcome.

    Args:
        regression: the fault.
        champion: config of the run whose release is the champion.
        challenger: config of a run in the same workspace whose release is published and not promoted.
        folder: for the copy.
    """
    shutil.copytree(champion.workspace, folder / "workspace")
    if regression.release is not None:
        copied_config = with_settings(challenger, [f"data.workspace={folder / 'workspace'}"])
        release = Release.load(folder / "workspace" / "releases" / RunContext.from_config(copied_config).run.run_id)
        regression.release(release)
        return judge(copied_config, STAGES[promote.STAGE])
    settings = [f"data.workspace={folder / 'workspace'}", *regression.settings]
    if regression.data is not None:
        interactions, items = (_read(source) for source in (champion.data.interactions, champion.data.items))
        tables = regression.data(interactions, items, champion)
        for name, table in zip(("interactions", "items"), tables, strict=True):
            table.write_parquet(folder / f"{name}.parquet")
            settings.append(f"data.{name}={folder / name}.parquet")
    return judge(with_settings(champion, settings), run_all_stages)


def _read(source: str | None) -> pl.DataFrame:
    if source is None:
        raise ConfigError("data.items must be set, because faults are injected into the items. Received: nothing.")
    return pl.read_parquet(source) if source.endswith(".parquet") else pl.read_csv(source, infer_schema=False)


def with_settings(config: Config, settings: Sequence[str]) -> Config:
    """Return a config with other settings, each `TABLE.KEY=VALUE`."""
    tables = config.model_dump(mode="json")
    for setting in settings:
        name, _, value = setting.partition("=")
        table, _, key = name.partition(".")
        tables[table][key] = json.loads(value) if table != "data" else value
    return parse_config(tables)
