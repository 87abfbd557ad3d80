"""Items that nobody touched yet: found by their features alone, beside comparing the features themselves.

    python -m benchmarks.new_items --config FILE [--set TABLE.KEY=VALUE] --json OUT

All interactions of a random tenth of the items are hidden from training, and the tower embeds these items by
their features. Each is then asked for its neighbors among the other items. What they should be is known: the
items that users did touch it together with, graded by the weight of the pair. The rivals are content-only cosine
of idf-weighted attributes, and the same with popularity breaking ties.

How much could be known at all is measured beside it: what half of the users say of a hidden item, asked for what the
other half touched together with it (`beside_own_interactions`).

The price is looked at too: the same data without hiding, with what serves new items (`train.new_items`,
`tower.id_dropout`) and without, by the validation NDCG@20 of look-ups from items that have interactions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from benchmarks.command import CONFIG, FIGURES, load, parser, working, write
from pipelines.context.progress import Progress
from pipelines.context.run_context import RunContext
from pipelines.orchestration.stage_table import STAGES
from pipelines.prepare.stage import prepare
from pipelines.stages import evaluate, train
from recsys.config.sections import Config
from recsys.data.catalog import Catalog
from recsys.evaluation.metrics import Recommender
from recsys.index import embeddings
from recsys.index.distances import DISTANCES
from recsys.index.exact import ExactIndex
from recsys.index.queries import Queries
from recsys.model.fit_plan import validation_plan
from recsys.release.runs import Run

HIDDEN_SHARE, K = 0.1, 20
RIVALS = ("popularity", "content", "content_popularity")


def ndcg(answers: NDArray[np.int32], relevance: sparse.csr_array) -> float:
    """Mean NDCG@K with the pair weights as gains.

    Args:
        answers: int32 [n, K], -1 pads.
        relevance: gains of each question, [n, num_items]; at least one a row.
    """
    discount = 1 / np.log2(np.arange(K) + 2.0)
    values = []
    for row, answer in enumerate(answers):
        gains = relevance[[row]].toarray().ravel()
        best = np.sort(gains)[::-1][:K]
        values.append((gains[answer[answer >= 0]] @ discount[: (answer >= 0).sum()]) / (best @ discount[: len(best)]))
    return float(np.mean(values))


def measure(config: Config, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Hide, train, embed, ask; what could be known at all; and the price for the other items."""
    whole = RunContext.from_config(config, Progress())
    prepare(whole.config, whole.run, whole.inputs, whole.progress)
    catalog = Catalog.load(whole.run.path("prepare", "catalog.parquet"))
    together = _pairs(whole.run)
    touched = np.flatnonzero(np.diff(together.indptr))
    rng = np.random.default_rng(seed)
    hidden = np.sort(rng.choice(touched, int(len(touched) * HIDDEN_SHARE), replace=False)).astype(np.int32)

    ids = [catalog.item_ids[number] for number in hidden]
    rows = pl.concat([pl.read_parquet(path) for path in whole.inputs.interactions])
    context = _prepared(config, rows.filter(~pl.col("item_id").cast(pl.String).is_in(ids)), folder / "hidden")
    for name in ("train", "embed"):
        STAGES[name](context)

    vectors = np.array(embeddings.load(context.run.path("embed", "embeddings.npy")))
    models: dict[str, Recommender] = {"siamese": ExactIndex(vectors, DISTANCES[config.tower.distance])}
    split = train.load_split(context.run)
    known = Catalog.load(context.run.path("prepare", "catalog.parquet"))
    rivals = evaluate.variants_before("test", context.config, context.run, split, known)
    models |= {name: rivals[name][0].fit() for name in RIVALS if name in rivals}
    asked, figures = _compare(models, together, hidden)
    return {
        "questions": asked,
        "ndcg_at_20": figures,
        "ratios": _ratios(figures),
        "beside_own_interactions": _beside_own(_halves(config, rows, folder, rng), models, vectors, hidden),
        "items_with_interactions": _price(config),
    }


def _prepared(config: Config, rows: pl.DataFrame, folder: Path) -> RunContext:
    """A night whose interactions are these rows, with its first stage done."""
    folder.mkdir()
    rows.write_parquet(folder / "interactions.parquet")
    data = config.data.model_copy(
        update={"interactions": str(folder / "interactions.parquet"), "workspace": str(folder / "workspace")}
    )
    context = RunContext.from_config(config.model_copy(update={"data": data}), Progress())
    prepare(context.config, context.run, context.inputs, context.progress)
    return context


def _pairs(run: Run) -> sparse.csr_array:
    """Weights of all pairs, [num_items, num_items]. The catalog is that of the items file, so numbers agree."""
    return train.load_pairs(run, "weight", run.manifest("prepare")["num_items"]).to_matrix()


def _compare(
    models: Mapping[str, Recommender], together: sparse.csr_array, hidden: NDArray[np.int32]
) -> tuple[int, dict[str, float]]:
    """How many hidden items can be asked, and the NDCG of each model; they are no answers to each other."""
    graded = _with_others(together, hidden)
    asked = np.diff(graded.indptr) > 0
    excluded = np.broadcast_to(hidden, (int(asked.sum()), len(hidden)))
    items = hidden[asked][:, None]
    queries = Queries(items, np.ones(items.shape, np.float32), excluded.astype(np.int32))
    return len(items), {name: ndcg(model.top_k(queries, K), graded[asked]) for name, model in models.items()}


def _with_others(together: sparse.csr_array, hidden: NDArray[np.int32]) -> sparse.csr_array:
    """The pairs of hidden items with those that are not, [num_hidden, num_items]."""
    rows = together[hidden].tolil()
    rows[:, hidden] = 0
    pairs = sparse.csr_array(rows)
    pairs.eliminate_zeros()
    return pairs


def _ratios(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: figures["siamese"] / value for name, value in figures.items() if name != "siamese"}


def _halves(config: Config, rows: pl.DataFrame, folder: Path, rng: np.random.Generator) -> list[sparse.csr_array]:
    """The pairs of one half of the users, and those of the other."""
    users = rows["user_id"].unique().sort()
    first = pl.col("user_id").is_in(users.filter(pl.Series(rng.random(len(users)) < 0.5)).implode())
    return [
        _pairs(_prepared(config, rows.filter(half), folder / name).run) for name, half in (("a", first), ("b", ~first))
    ]


def _beside_own(
    halves: Sequence[sparse.csr_array],
    models: Mapping[str, Recommender],
    vectors: NDArray[np.float32],
    hidden: NDArray[np.int32],
) -> dict[str, Any]:
    """How much could be known at all: what half of the users say of an item, asked for what the others touch with it.

    An item's place is then the mean of what the first half touched together with it, weighted, popular items less;
    by itself (`own_half`), or beside the place that its features give it (`own_half_and_features`). Near is by cosine.
    """
    own, others = halves
    popularity = np.asarray((own + others).sum(axis=0))
    mean = (_with_others(own, hidden) / np.sqrt(popularity + 1)) @ vectors
    length = np.linalg.norm(mean, axis=1)
    said = length > 0
    asked, by_own = hidden[said], mean[said] / length[said, None]
    models = dict(models)
    for name, place in (("own_half", by_own), ("own_half_and_features", by_own + vectors[asked])):
        moved = vectors.copy()
        moved[asked] = place / np.linalg.norm(place, axis=1, keepdims=True)
        models[name] = ExactIndex(moved)
    # of what the first half does not know, there is nothing to compare
    known = np.isin(np.arange(len(vectors)), asked).astype(np.float32)
    questions, figures = _compare(models, sparse.csr_array(sparse.diags_array(known) @ others), hidden)
    return {"questions": questions, "ndcg_at_20": figures, "ratios": _ratios(figures)}


def _price(config: Config) -> dict[str, float]:
    """Validation NDCG@20 of items with interactions, with what serves new items and without."""
    without = {
        "train": config.train.model_copy(update={"new_items": False}),
        "tower": config.tower.model_copy(update={"id_dropout": 0.0}),
    }
    found = {}
    for name, tried in (("serving_new_items", config), ("without", config.model_copy(update=without))):
        context = RunContext.from_config(tried)
        prepare(context.config, context.run, context.inputs, context.progress)
        fitted = train.fit_tower(tried, context.run, validation_plan(tried), lambda *_: None)
        figures = train.measure_validation(tried, context.run, fitted.embeddings)["validation"]
        found[name] = figures["last_item"]["ndcg_at_20"]
        found[f"{name}_history"] = figures["history"]["ndcg_at_20"]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """The benchmark as a program."""
    asked = parser(__doc__, CONFIG, FIGURES).parse_args(argv)
    with working() as folder:
        print(write(measure(load(asked, folder / "whole"), folder), asked.json))


if __name__ == "__main__":
    main()
