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
from recsys.data.storage import sha256
from recsys.errors import ConfigError, RecsysError, RefusedError
from recsys.index import annoy_index, embeddings
from recsys.index.shards import INDEX_FILE
from recsys.release.bundle import Release
from recsys.release.formats import CATALOG, EMBEDDINGS, MANIFEST
from recsys.release.manifest import FileEntry

DAY_S, MS = 86_400, 1_000
TINY_SEARCH = 20
"""What a look-up of ten inspects in an index of one tree, if Annoy is left to choose."""

Tables = tuple[pl.DataFrame, pl.DataFrame]
"""Interactions and items."""


# --- into the data


def half_the_catalog(interactions: pl.DataFrame, items: pl.DataFrame, _: Config) -> Tables:
    """Every second item is gone, with its interactions: an export that stopped halfway."""
    kept = items.sort("item_id").gather_every(2)
    return interactions.join(kept, on="item_id", how="semi", maintain_order="left"), kept


def a_day_twice(interactions: pl.DataFrame, items: pl.DataFrame, _: Config) -> Tables:
    """The rows of the busiest day are delivered twice."""
    days = interactions["timestamp"] // DAY_S
    busiest = days.value_counts(sort=True)["timestamp"][0]
    return pl.concat([interactions, interactions.filter(days == busiest)]), items


def milliseconds(interactions: pl.DataFrame, items: pl.DataFrame, _: Config) -> Tables:
    """Another unit of time."""
    return interactions.with_columns(pl.col("timestamp") * MS), items


def one_category(interactions: pl.DataFrame, items: pl.DataFrame, config: Config) -> Tables:
    """A join that gave every item the category of the first."""
    columns = [*config.items.categorical, *config.items.multi_categorical]
    return interactions, items.with_columns(pl.col(column).first() for column in columns)


# --- into the finished release


def rewrite(folder: Path, files: dict[str, Callable[[Path], None]], **manifest: Any) -> None:
    """Replace files of a release, and make its manifest agree: no checksum tells."""
    known = json.loads((folder / MANIFEST).read_text()) | manifest
    for name, save in files.items():
        (folder / name).unlink()
        save(folder / name)
        known["files"][name] = FileEntry(
            bytes=(folder / name).stat().st_size, sha256=sha256(folder / name)
        ).model_dump()
    (folder / MANIFEST).write_text(json.dumps(known))


def with_vectors(release: Release, vectors: embeddings.Vectors) -> None:
    """Other embeddings, and an index that agrees with them."""
    settings = IndexConfig(n_trees=release.manifest.n_trees)
    rewrite(
        release.path,
        {
            EMBEDDINGS: lambda path: embeddings.save(vectors, path),
            INDEX_FILE: lambda path: _index(vectors, settings, path, release),
        },
    )


def _index(vectors: embeddings.Vectors, settings: IndexConfig, path: Path, release: Release) -> None:
    annoy_index.build(vectors, settings, path, distance=release.distance)


def shuffled(release: Release) -> None:
    """Each item has the embedding of another."""
    with_vectors(release, np.random.default_rng(0).permutation(np.asarray(release.vectors)))


def popularity_collapse(release: Release) -> None:
    """Whatever is asked, the most touched items are nearest: they lie in the middle, and all others around."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=release.vectors.shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    touched = release.catalog.frame["interactions"].to_numpy()
    nearness = np.argsort(np.argsort(touched, kind="stable")) / len(touched)
    vectors[:, 0] += 2 * nearness**2
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with_vectors(release, vectors)


def one_tree(release: Release) -> None:
    """An index of one tree that is searched as if it had many, beside the recall of the old one."""
    vectors = np.asarray(release.vectors)
    settings = IndexConfig(n_trees=1)
    rewrite(
        release.path,
        {INDEX_FILE: lambda path: _index(vectors, settings, path, release)},
        n_trees=1,
        search_k=TINY_SEARCH,
    )


def not_a_number(release: Release) -> None:
    """One vector is NaN."""
    vectors = np.array(release.vectors)
    vectors[len(vectors) // 2] = np.nan
    rewrite(release.path, {EMBEDDINGS: lambda path: embeddings.save(vectors, path)})


def swapped_ids(release: Release) -> None:
    """Two halves of the id map have changed places: titles and features stand under the ids of others."""
    frame = release.catalog.frame
    ids = frame["item_id"]
    swapped = frame.with_columns(item_id=pl.concat([ids[len(ids) // 2 :], ids[: len(ids) // 2]]))
    rewrite(release.path, {CATALOG: swapped.write_parquet})


class Regression(NamedTuple):
    """Something to plant, and who has to refuse it."""

    name: str
    by: str
    """The check of the gate, or words of the error where the night ends before it is asked."""
    data: Callable[[pl.DataFrame, pl.DataFrame, Config], Tables] | None = None
    settings: Sequence[str] = ()
    release: Callable[[Release], None] | None = None


STOPPED = ("train.passes=1", "train.history_passes=0")
REGRESSIONS = [
    Regression("shuffled embeddings", "tower_agreement", release=shuffled),
    Regression("popularity collapse", "ndcg_at_20_change", release=popularity_collapse),
    Regression("half the catalog gone", "data_lost_items", data=half_the_catalog),
    Regression("interactions of a day duplicated", "data_copied_day", data=a_day_twice),
    Regression("timestamps in milliseconds", "timestamp", data=milliseconds),
    Regression("all items one category", "data_one_category", data=one_category),
    Regression("training stopped after one pass", "ndcg_at_20_change", settings=STOPPED),
    Regression("an index with one tree", "index_recall", release=one_tree),
    Regression("a NaN vector", "finite", release=not_a_number),
    Regression("a swapped id map", "catalog_covered", release=swapped_ids),
]


class Verdict(NamedTuple):
    """What became of a night."""

    promoted: bool
    failed: list[str]
    """Checks of the gate that it failed."""
    error: str
    """What the night said."""
    checks: list[dict[str, Any]]

    def names(self, by: str) -> bool:
        """Whether it was refused by a check, or in these words before the gate was asked."""
        return not self.promoted and (by in self.failed if self.failed else by in self.error)


def judge(config: Config, stage: Callable[[RunContext], dict[str, Any]]) -> Verdict:
    """Run a night, or a stage of it."""
    context = RunContext.from_config(config, Progress())
    try:
        with context.run.locked():
            done = stage(context)
    except RefusedError as error:
        checks = json.loads((context.run.folder / promote.REPORT).read_text())["checks"]
        return Verdict(False, [check["name"] for check in checks if check["verdict"] == "failed"], str(error), checks)
    except RecsysError as error:
        return Verdict(False, [], f"{type(error).__name__}: {error}", [])
    return Verdict(bool(done["promoted"]), [], "", done["checks"])


def night_of(context: RunContext) -> dict[str, Any]:
    """The whole of it."""
    summary: dict[str, Any] = {}
    nightly.run_stages(context, summary, TimeLimit())
    return summary


def publish(context: RunContext) -> None:
    """All of a night but the last stage."""
    for name, stage in STAGES.items():
        if name != promote.STAGE:
            stage(context)


def planted(regression: Regression, champion: Config, challenger: Config, folder: Path) -> Verdict:
    """What becomes of a regression in a copy of the champion's workspace.

    Args:
        regression: what is planted.
        champion: the config of the night whose release is in service.
        challenger: the config of a night in the same workspace that is published and not judged.
        folder: where the copy goes.
    """
    shutil.copytree(champion.workspace, folder / "workspace")
    if regression.release is not None:
        copied = changed(challenger, [f"data.workspace={folder / 'workspace'}"])
        release = Release.load(folder / "workspace" / "releases" / RunContext.from_config(copied).run.run_id)
        regression.release(release)
        return judge(copied, STAGES[promote.STAGE])
    settings = [f"data.workspace={folder / 'workspace'}", *regression.settings]
    if regression.data is not None:
        interactions, items = (_read(source) for source in (champion.data.interactions, champion.data.items))
        tables = regression.data(interactions, items, champion)
        for name, table in zip(("interactions", "items"), tables, strict=True):
            table.write_parquet(folder / f"{name}.parquet")
            settings.append(f"data.{name}={folder / name}.parquet")
    return judge(changed(champion, settings), night_of)


def _read(source: str | None) -> pl.DataFrame:
    if source is None:
        raise ConfigError("data.items must be set: half of it is to be planted away. Received: nothing.")
    return pl.read_parquet(source) if source.endswith(".parquet") else pl.read_csv(source, infer_schema=False)


def changed(config: Config, settings: Sequence[str]) -> Config:
    """A config with other settings, `TABLE.KEY=VALUE`."""
    tables = config.model_dump(mode="json")
    for setting in settings:
        name, _, value = setting.partition("=")
        table, _, key = name.partition(".")
        tables[table][key] = json.loads(value) if table != "data" else value
    return parse_config(tables)
