"""Quality of new items, which are embedded by their features, compared with content baselines.

    python -m benchmarks.new_items --config FILE [--set TABLE.KEY=VALUE] --json OUT

All interactions of a random tenth of the items are removed from training, and the tower embeds these hidden items by
their features. Each hidden item is a query item, and the candidates are the other items. The relevant items are those
that co-occur with it in the removed interactions, with the pair weights as gains. The baselines are popularity, the
cosine of idf-weighted attributes, and this cosine with ties broken by popularity.

If the sense `similar` has embeddings of its own, hidden items are measured by them too (`similar`); the gains are then
the partial weights of the removed interactions.

An upper limit is measured as well: hidden items are embedded by the interactions of one half of the users, and
evaluated on the pairs of the other half (`with_own_interactions`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from benchmarks.command import CONFIG, FIGURES, load, parser, temporary_folder, write
from pipelines.context.progress import Progress
from pipelines.context.run_context import RunContext
from pipelines.orchestration.stage_table import STAGES
from pipelines.prepare.stage import prepare
from pipelines.stages import train
from pipelines.stages.train_similar import has_own_space
from recsys.config.sections import Config
from recsys.config.senses import Sense
from recsys.data.catalog import Catalog
from recsys.evaluation.baselines import Content, Popularity, interaction_matrix
from recsys.evaluation.metrics import Recommender, ndcg_of_gains
from recsys.features.tfidf import tfidf_matrix
from recsys.index import embeddings
from recsys.index.distances import DISTANCES
from recsys.index.exact import ExactIndex
from recsys.index.queries import Queries
from recsys.release.runs import Run

HIDDEN_SHARE, K = 0.1, 20


def ndcg(results: NDArray[np.int32], relevance: sparse.csr_array) -> float:
    """Return the mean NDCG@K with the pair weights as gains.

    Args:
        results: item numbers, int32 [n, K]; -1 pads short rows.
        relevance: gains of each query, [n, num_items]; at least one per row.
    """
    values = []
    for row, result in enumerate(results):
        gains = relevance[[row]].toarray().ravel()
        values.append(ndcg_of_gains(gains[result[result >= 0]], gains, K))
    return float(np.mean(values))


def measure(config: Config, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Measure new items, and the upper limit."""
    complete = RunContext.from_config(config, Progress())
    prepare(complete.config, complete.run, complete.inputs, complete.progress)
    catalog = Catalog.load(complete.run.path("prepare", "catalog.parquet"))
    pair_weights = _pairs(complete.run)
    with_pairs = np.flatnonzero(np.diff(pair_weights.indptr))
    rng = np.random.default_rng(seed)
    hidden = np.sort(rng.choice(with_pairs, int(len(with_pairs) * HIDDEN_SHARE), replace=False)).astype(np.int32)

    ids = [catalog.item_ids[number] for number in hidden]
    rows = _read_interactions(complete)
    context = _prepare_rows(config, rows.filter(~pl.col("item_id").cast(pl.String).is_in(ids)), folder / "hidden")
    for name in ("train", "embed", "train-similar", "embed-similar"):
        STAGES[name](context)

    vectors = np.array(embeddings.load(context.run.path("embed", "embeddings.npy")))
    models: dict[str, Recommender] = {"siamese": ExactIndex(vectors, DISTANCES[config.tower.distance])}
    interactions = interaction_matrix(train.load_split(context.run), "test", len(catalog))
    popularity, attributes = interactions.sum(axis=0), tfidf_matrix(catalog.frame, config.items)
    models["popularity"] = Popularity(popularity)
    if attributes is not None:
        models |= {"content": Content(attributes), "content_popularity": Content(attributes, popularity)}
    num_queries, figures = _compare(models, pair_weights, hidden)
    similar = None
    if has_own_space(context.run):
        own = np.array(embeddings.load(context.run.of("similar").path("embed", "embeddings.npy")))
        own_models = {**models, "siamese": ExactIndex(own, DISTANCES[config.tower.distance]), "next": models["siamese"]}
        count, own_figures = _compare(own_models, _pairs(complete.run, "similar"), hidden)
        similar = {"queries": count, "ndcg_at_20": own_figures, "ratios": _ratios(own_figures)}
    return {
        "queries": num_queries,
        "ndcg_at_20": figures,
        "ratios": _ratios(figures),
        "similar": similar,
        "with_own_interactions": _compare_own_interactions(
            _pairs_by_half(config, rows, folder, rng), models, vectors, hidden
        ),
    }


def _read_interactions(context: RunContext) -> pl.DataFrame:
    """Return all rows of the interactions, which are Parquet files."""
    return pl.concat([pl.read_parquet(path) for path in context.inputs.interactions])


def _prepare_rows(config: Config, rows: pl.DataFrame, folder: Path) -> RunContext:
    """Run `prepare` with these interactions, in a new folder."""
    folder.mkdir()
    rows.write_parquet(folder / "interactions.parquet")
    data = config.data.model_copy(
        update={"interactions": str(folder / "interactions.parquet"), "workspace": str(folder / "workspace")}
    )
    context = RunContext.from_config(config.model_copy(update={"data": data}), Progress())
    prepare(context.config, context.run, context.inputs, context.progress)
    return context


def _pairs(run: Run, sense: Sense = "next") -> sparse.csr_array:
    """Return the weights of all pairs, [num_items, num_items]. All runs have the same item numbers."""
    return train.load_pairs(run, "test", run.manifest("prepare")["num_items"], sense).to_matrix()


def _compare(
    models: Mapping[str, Recommender], pair_weights: sparse.csr_array, hidden: NDArray[np.int32]
) -> tuple[int, dict[str, float]]:
    """Return the number of queries and the NDCG of each model. Hidden items are excluded from the results."""
    gains = _pairs_with_other_items(pair_weights, hidden)
    has_pairs = np.diff(gains.indptr) > 0
    excluded = np.broadcast_to(hidden, (int(has_pairs.sum()), len(hidden)))
    items = hidden[has_pairs][:, None]
    queries = Queries(items, np.ones(items.shape, np.float32), excluded.astype(np.int32))
    return len(items), {name: ndcg(model.top_k(queries, K), gains[has_pairs]) for name, model in models.items()}


def _pairs_with_other_items(pair_weights: sparse.csr_array, hidden: NDArray[np.int32]) -> sparse.csr_array:
    """Return the pairs of hidden items with other items, [num_hidden, num_items]."""
    rows = pair_weights[hidden].tolil()
    rows[:, hidden] = 0
    pairs = sparse.csr_array(rows)
    pairs.eliminate_zeros()
    return pairs


def _ratios(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: figures["siamese"] / value for name, value in figures.items() if name != "siamese"}


def _pairs_by_half(
    config: Config, rows: pl.DataFrame, folder: Path, rng: np.random.Generator
) -> list[sparse.csr_array]:
    """Split the users randomly into halves, and return the pairs of each half."""
    users = rows["user_id"].unique().sort()
    first = pl.col("user_id").is_in(users.filter(pl.Series(rng.random(len(users)) < 0.5)).implode())
    return [
        _pairs(_prepare_rows(config, rows.filter(half), folder / name).run)
        for name, half in (("a", first), ("b", ~first))
    ]


def _compare_own_interactions(
    halves: Sequence[sparse.csr_array],
    models: Mapping[str, Recommender],
    vectors: NDArray[np.float32],
    hidden: NDArray[np.int32],
) -> dict[str, Any]:
    """Embed hidden items by the interactions of one half of the users, and evaluate on the pairs of the other half.

    The embedding is the weighted mean of the items that form pairs in the first half, where popular items have lower
    weights (`own_half`), or the sum of this mean and the embedding by features (`own_half_and_features`). The distance
    is the cosine.
    """
    first_half, second_half = halves
    popularity = np.asarray((first_half + second_half).sum(axis=0))
    mean = (_pairs_with_other_items(first_half, hidden) / np.sqrt(popularity + 1)) @ vectors
    length = np.linalg.norm(mean, axis=1)
    has_mean = length > 0
    items, by_interactions = hidden[has_mean], mean[has_mean] / length[has_mean, None]
    models = dict(models)
    for name, embedding in (("own_half", by_interactions), ("own_half_and_features", by_interactions + vectors[items])):
        changed = vectors.copy()
        changed[items] = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
        models[name] = ExactIndex(changed)
    # queries: only items with pairs in the first half
    has_embedding = np.isin(np.arange(len(vectors)), items).astype(np.float32)
    num_queries, figures = _compare(models, sparse.csr_array(sparse.diags_array(has_embedding) @ second_half), hidden)
    return {"queries": num_queries, "ndcg_at_20": figures, "ratios": _ratios(figures)}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as a program."""
    arguments = parser(__doc__, CONFIG, FIGURES).parse_args(argv)
    with temporary_folder() as folder:
        print(write(measure(load(arguments, folder / "complete"), folder), arguments.json))


if __name__ == "__main__":
    main()
