"""Measure whether the nearest neighbors of items are like them, for towers and baselines.

    python -m benchmarks.likeness --sequences FILE [--attributes FILE] [--texts FILE] [--alike FILE] --json OUT
    python -m benchmarks.likeness --config FILE [--texts FILE] [--alike FILE] --json OUT

Three kinds of evidence, described in `docs/explanation/likeness.md`: the agreement with users who took no part in the
training, groups of items that people put together (`--alike`, JSON: name to item ids), and texts that no model reads
(`--texts`, JSON: item to text). All models are trained on the other users, as in the validation fit of a run, and the
settings of each baseline are those with the best agreement. The next item is that of the other users in the test.

`next` is the validation fit of a run. The other towers are trained as the candidate of the stage `train-similar`, and
differ in their pairs:

- `similar` and `similar_features`: partial weights, the candidates of a run; the second relies more on features
- `lift`: shrunk lift
- `windowed`: the pairs of `next`, co-occurrence within a window
- `mixed .3`, `.5` and `.7`: this share of partial weights, the rest windowed

`chosen` is the tower that a run would take for the sense `similar`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from scipy import sparse

from benchmarks.command import FIGURES, parser, temporary_folder, write
from benchmarks.quality import ALL_USERS
from pipelines.context.item_groups import read_groups
from pipelines.context.progress import Progress
from pipelines.context.run_context import RunContext
from pipelines.orchestration.stage_table import STAGES
from pipelines.prepare.similar_pairs import MAX_POSITIVES, POWER
from pipelines.stages import evaluate, train
from pipelines.stages.train_similar import CANDIDATES, SIMILAR, candidate_config, candidate_name, is_better
from recsys.config.loading import load_config
from recsys.config.sections import Config, ItemsConfig
from recsys.data import association, cooccurrence, datasets, pairs
from recsys.data.catalog import Catalog
from recsys.data.splits import Split
from recsys.errors import InputError
from recsys.evaluation.baselines import interaction_matrix, user_item_matrix
from recsys.evaluation.likeness import (
    AGREEMENT,
    SEARCHED,
    CatalogEvidence,
    Evidence,
    agreement,
    group_item_numbers,
    likeness_report,
    means,
)
from recsys.evaluation.metrics import Recommender, evaluate_last_item
from recsys.features.tfidf import tfidf_matrix, unit_length_rows
from recsys.index.distances import DISTANCES
from recsys.index.exact import ExactIndex
from recsys.index.queries import Queries
from recsys.model.fit_plan import similar_candidate_plan, validation_plan
from recsys.release.formats import CATALOG
from recsys.release.runs import Run

LIFT_SHRINKAGE = 10.0
MIXES = (0.3, 0.5, 0.7)
"""Shares of partial weights in a mix."""
RESAMPLES = 1_000

TEXTS = TypeAdapter(dict[str, str])
DESCRIPTIONS = {
    "alike": "a JSON file with an object: name of a group to its item ids",
    "texts": "a JSON file with an object: item id to text",
}
Embed = Callable[[], tuple[NDArray[np.float32], int]]
PRINTED = (
    AGREEMENT,
    "lift_agreement_at_10",
    "partial_agreement_at_10",
    "group_recall_at_10",
    "column_agreement_at_10",
    "next_item_ndcg_at_20",
)


def measure(config: Config, folder: Path, texts: Path | None, alike: Path | None) -> dict[str, Any]:
    """Train all models on the users who are not held out, and return their figures."""
    groups = read_groups(str(alike), "--alike") if alike else {}
    context = RunContext.from_config(config, Progress())
    STAGES["prepare"](context)
    catalog = Catalog.load(context.run.path("prepare", CATALOG))
    split = train.load_split(context.run)
    sequences, held_out = split.sequences, split.held_out
    histories = user_item_matrix(sequences, held_out[sequences.users], len(catalog))[held_out]
    evidence = Evidence.from_interactions(histories)
    catalog_evidence = CatalogEvidence(
        group_item_numbers(groups, catalog), _text_columns(catalog, texts) if texts else None
    )
    popularity = split.popularity("validation", len(catalog))
    holdout = Split(sequences.select(~held_out), split.time_cut).holdout("test", ALL_USERS)
    reports: dict[str, Any] = {}

    def report(name: str, model: Recommender, **details: Any) -> None:
        figures = likeness_report(model, popularity, RESAMPLES, users=evidence, catalog=catalog_evidence)
        next_item = evaluate_last_item(model, holdout).get("ndcg_at_20")
        reports[name] = {**figures, "next_item_ndcg_at_20": next_item, **details}
        print(_line(name, reports[name]), flush=True)

    print(f"{'':<20}" + "".join(f"{name.removesuffix('_at_10'):>20}" for name in PRINTED))
    for name, (model, settings) in _best_baselines(context, catalog, evidence, popularity).items():
        report(name, model, settings=settings)
    for name, embed in _towers(context, evidence, folder).items():
        started = time.monotonic()
        vectors, passes = embed()
        seconds = round(time.monotonic() - started, 1)
        # baselines cannot return items without interactions either
        index = ExactIndex(vectors, DISTANCES[config.tower.distance], popularity > 0)
        report(f"tower, {name}", index, passes=passes, seconds=seconds)
    candidate = candidate_name(split)
    chosen = candidate if is_better(reports[f"tower, {candidate}"], reports["tower, next"]) else "next"
    print(f"chosen for the sense similar: {chosen}")
    return {
        "users": int((~held_out).sum()),
        "users_held_out": int(held_out.sum()),
        "groups": len(catalog_evidence.groups),
        "chosen": chosen,
        "models": reports,
    }


def _read_texts(path: Path) -> dict[str, str]:
    try:
        return TEXTS.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error.errors()[0]["msg"])
        raise InputError(f"--texts must be {DESCRIPTIONS['texts']}. Received {path}: {reason}.") from None


def _text_columns(catalog: Catalog, texts: Path) -> sparse.csr_array:
    """Return the TF-IDF weights of texts, in rows of length 1 or 0, [num_items, num_words]."""
    text_of_item = _read_texts(texts)
    frame = pl.DataFrame({"text": [text_of_item.get(item_id, "") for item_id in catalog.item_ids]})
    matrix = tfidf_matrix(frame, ItemsConfig(text=("text",)))
    if matrix is None:
        raise InputError(f"texts must contain words of items in the catalog. Received: none in {texts}.")
    return unit_length_rows(matrix)


def _best_baselines(
    context: RunContext, catalog: Catalog, evidence: Evidence, popularity: NDArray[np.int64]
) -> dict[str, tuple[Recommender, dict[str, float]]]:
    """Return each baseline with the settings that agree best with the evidence."""
    split = train.load_split(context.run)
    variants = evaluate.BaselineData(context.config, context.run, split, catalog).variants("validation")
    items = np.flatnonzero(popularity > 0).astype(np.int32)
    best: dict[str, tuple[Recommender, dict[str, float]]] = {}
    for name, candidates in variants.items():
        scores = []
        for variant in candidates:
            model = variant.fit()
            values = agreement(model.top_k(Queries.from_items(items), SEARCHED), items, evidence)
            scores.append(means(values).get(AGREEMENT, 0.0))
            if scores[-1] == max(scores):
                best[name] = model, variant.settings
    return best


def _towers(context: RunContext, evidence: Evidence, folder: Path) -> Mapping[str, Embed]:
    """Return functions that train a tower, and return the embeddings of the catalog and the number of passes."""
    split, num_items = train.load_split(context.run), evidence.lift.shape[0]
    interactions = interaction_matrix(split, "validation", num_items)
    root_popularity = np.sqrt(np.asarray(interactions.sum(axis=0)).ravel())
    partial = association.partial_weights(interactions, context.config.similar.penalty, POWER, MAX_POSITIVES)
    lift = association.normalize_rows(association.shrunk_lift(interactions, LIFT_SHRINKAGE, MAX_POSITIVES))
    windowed = association.normalize_rows(train.load_pairs(context.run, "validation", num_items).to_matrix())

    def train_next() -> tuple[NDArray[np.float32], int]:
        fitted = train.fit_tower(context.config, context.run, validation_plan(context.config), lambda *_: None)
        return fitted.embeddings, sum(fitted.passes)

    def train_on(name: str, weights: sparse.csr_array, candidate: str = SIMILAR) -> Embed:
        # an anchor counts with the root of its popularity
        path = _write_pairs(weights, root_popularity, folder / f"{name}.parquet")
        training_pairs = pairs.Pairs([path], num_items, "weight")
        config = candidate_config(context.config, candidate)
        return lambda: _fit(config, context.run, training_pairs, evidence)

    return {
        "next": train_next,
        **{name: train_on(name, partial, name) for name in CANDIDATES},
        "lift": train_on("lift", lift),
        "windowed": train_on("windowed", windowed),
        **{f"mixed {share}": train_on(f"mixed {share}", share * partial + (1 - share) * windowed) for share in MIXES},
    }


def _write_pairs(weights: sparse.csr_array, anchor_weight: NDArray[np.float64], path: Path) -> Path:
    frame = cooccurrence.from_matrix(weights, np.arange(len(anchor_weight)), anchor_weight, "weight")
    pairs.write(cooccurrence.group_by_anchor(frame, frame.height), path)
    return path


def _fit(config: Config, run: Run, training_pairs: pairs.Pairs, evidence: Evidence) -> tuple[NDArray[np.float32], int]:
    """Train a tower in passes over pairs, as the candidates of the stage `train-similar`."""
    from recsys.model.tower_fit import TowerFit

    data = train.load_fit_data(config, run, "validation")._replace(pairs=training_pairs, evidence=evidence)
    fitted = TowerFit(similar_candidate_plan(config), data, config).run()
    return fitted.embeddings, fitted.passes.pairs


def _line(name: str, figures: Mapping[str, Any]) -> str:
    values = [figures.get(metric) for metric in PRINTED]
    return f"{name:<20}" + "".join(f"{'' if value is None else f'{value:.4f}':>20}" for value in values)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark as a program."""
    options = parser(__doc__, FIGURES)
    source = options.add_mutually_exclusive_group(required=True)
    source.add_argument("--sequences", type=Path, help="one line per user: user item item …, oldest item first")
    source.add_argument("--config", type=Path, help="the TOML config of other data")
    options.add_argument("--attributes", type=Path, help="JSON object: item to list of attributes, for --sequences")
    options.add_argument("--texts", type=Path, help=f"{DESCRIPTIONS['texts']}, which no model reads")
    options.add_argument("--alike", type=Path, help=DESCRIPTIONS["alike"])
    arguments = options.parse_args(argv)
    with temporary_folder() as folder:
        toml = arguments.config or datasets.sequences(arguments.sequences, arguments.attributes, folder / "data")
        config = load_config(toml, [f"data.workspace={folder / 'workspace'}"])
        write(measure(config, folder, arguments.texts, arguments.alike), arguments.json)


if __name__ == "__main__":
    main()
