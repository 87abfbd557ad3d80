"""The tables of the config: one frozen pydantic model each. Unknown keys are errors."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)

from recsys.config.column_rules import INTERACTION_KINDS, ColumnRulesConfig, check_column_rules
from recsys.config.table import Columns, Count, DistanceName, Positive, Share, Table, instant
from recsys.config.urls import Address

RESERVED = {"item_id", "interactions", "available"}
"""Catalog columns that are not features. `title` is a feature only if it is the title column."""


class DataConfig(Table):
    """Where the input is, and where results are written."""

    interactions: str | None = None
    """Interactions: a path, a glob or a URL (`s3://bucket/log/*.parquet`) of Parquet, CSV or JSON Lines files; text may
    be gzipped. Required by every stage of a run, not by the service. See `docs/how-to/storage.md`."""
    items: str | None = None
    """Items, in the same formats. By default, the catalog consists of the items that have interactions."""
    labeled_pairs: str | None = None
    """Pairs of items labeled by people, in the same formats, with columns `item_a`, `item_b` and `same` (0 or 1). If
    set, the tower is trained on these pairs only; early stopping still uses the interactions."""
    alike: str | None = None
    """JSON file with groups of items that belong together: name of a group -> item ids. The reports show how many items
    of a group are among the nearest neighbors of the others; the groups are not used for training."""
    feedback: str | None = None
    """Impressions and clicks per release, in the same formats, with columns `release_id`, `shown` and `clicked`. The
    run report shows the click-through rate of each release; it is not used for training."""
    warm_start: str | None = None
    """Folder or URL of a release whose tower is the start of training. Set it to keep embeddings similar from run to
    run. The embeddings of new items start from their features."""
    workspace: str = "workspace"
    """Local folder for runs, releases and, by default, the MLflow database."""
    releases: str | None = None
    """Folder or URL to which finished releases are copied, for services on other machines. A release is never replaced
    there."""

    @field_validator("workspace")
    @classmethod
    def _local(cls, workspace: str) -> str:
        if Address(workspace).scheme is not None:
            raise ValueError("must be a folder of this machine. data.releases may be a URL")
        return workspace


class ItemsConfig(Table):
    """The role of each column of the items. `item_id` is always the id."""

    title: str | None = None
    """Column with the item title that results show."""
    categorical: Columns = ()
    """Columns with one category per item, such as brand or language."""
    multi_categorical: Columns = ()
    """Columns with several categories per item, such as genres or tags: lists, or text split at `separator`."""
    separator: str = "|"
    """Separator of categories in text columns."""
    numeric: Columns = ()
    """Columns with a number per item, such as year or price. Missing values are allowed."""
    text: Columns = ()
    """Columns with free text, such as title or description. The title column may be one of them."""
    evidence: Columns = ()
    """Columns with text or categories that no model reads. The reports show how much neighbors agree in them."""
    available: str | None = None
    """Column that states whether an item is available: true or false, 1 or 0, also as text; empty means true. Queries
    can be restricted to available items."""

    @model_validator(mode="after")
    def _one_role_a_column(self) -> ItemsConfig:
        roles = [*self.categorical, *self.multi_categorical, *self.numeric, *self.evidence]
        taken = RESERVED & {*roles, *self.text}
        if taken or (self.title != "title" and "title" in [*roles, *self.text]):
            raise ValueError(f"no feature may be called {', '.join(sorted(taken)) or 'title'}: the name is reserved")
        roles += filter(None, [self.available])
        roles += self.text  # the title may be read as text
        twice = sorted({column for column in roles if roles.count(column) > 1})
        if twice:
            raise ValueError(f"each column must have one role; named twice: {', '.join(twice)}")
        return self

    @property
    def kinds(self) -> dict[str, str]:
        """Columns that are read -> their kind."""
        return {
            **dict.fromkeys(
                ("item_id", *filter(None, [self.title]), *self.categorical, *self.text, *self.evidence), "text"
            ),
            **dict.fromkeys(self.multi_categorical, "lists of text"),
            **dict.fromkeys(self.numeric, "numbers"),
        }


class PrepareConfig(Table):
    """Preparation of catalog, sequences and pairs from interactions and items."""

    as_of: Annotated[datetime, instant(time.min)] | None = None
    """Use only interactions before this time, as if the run had started then. A date means midnight UTC. Items have no
    time; all of them are used."""
    window: Count = 10
    """Largest distance, in positions of a user's sequence, between two items of a pair. Larger windows also relate
    items that are farther apart, and take longer."""
    decay: Annotated[float, Field(ge=0)] = 1.0
    """A pair of items `gap` positions apart has the weight gap ** -decay. 0 weighs all pairs in the window equally."""
    directed: bool = False
    """If true, only the later item of a pair is a positive of the earlier one. Set it if the order of items matters,
    such as in episodes."""
    session_gap_minutes: Positive | None = None
    """A pause longer than this ends a session; pairs do not cross sessions. By default, the whole sequence is one
    session."""
    half_life_days: Positive | None = None
    """Age, relative to the newest interaction, at which the weight of a pair is halved. Set it if interests change
    quickly. By default, the weight does not depend on age."""
    max_user_interactions: Annotated[int, Field(ge=2)] = 10_000
    """Maximum number of recent interactions per user used to form pairs; limits the influence of bots."""
    user_power: Share = 0.0
    """The pairs of a user are divided by their total weight to this power. 1 gives all users the same influence, 0
    gives active users more."""
    event_weights: dict[str, Positive] = {}
    """Weight of an interaction by its `event`, such as { view = 1, purchase = 5 }. Events that are not listed are
    filtered out. By default, all events have the same weight."""
    min_rating: float | None = None
    """Smallest `rating` of an interaction. A lower one means that the user disliked the item, and is filtered out; rows
    without a rating are used. By default, ratings are ignored."""
    max_per_second: Count = 100
    """Maximum number of different items of a user in one second. More are an import or a script, and are filtered out.
    Raise it if all items of a large order have the same time. See `docs/how-to/interaction-rules.md`."""
    max_dead_letter_ratio: Share = 0.01
    """Maximum share of dead letters; above it, the run stops."""


class TowerConfig(Table):
    """The encoder that both items of a pair share."""

    dimension: Annotated[int, Field(ge=2)] = 128
    """Length of an embedding. Larger values make every stage slower and rarely help above 128."""
    distance: DistanceName = "cosine"
    """Distance between embeddings in training, in the index and in results. See `docs/explanation/losses.md`."""
    fusion: Literal["sum", "concatenation", "gating"] = "sum"
    """How the encoded features are combined. `gating` weighs them for each item."""
    text_encoder: Literal["bag", "convolutional", "recurrent"] = "bag"
    """How text is encoded: as a bag of word and character n-grams (fastest), or as a sequence of words by a
    convolutional or recurrent network."""
    min_count: Count = 1
    """Items with fewer pairs share hashed id embeddings. Raise it to save memory if the catalog has many rare items."""
    hidden: Annotated[tuple[Count, ...], Field(strict=False)] = ()
    """Sizes of hidden layers between the combined features and the embedding. Useful with many features."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout rate after each hidden layer."""
    id_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of items whose id is hidden at each training step, as regularization. For new items, prefer
    `train.new_items`."""


class CandidatesConfig(Table):
    """The items with which the positives of an anchor are compared in training."""

    kind: Literal["auto", "catalog", "sampled", "in_batch", "mixed"] = "auto"
    """`catalog`: all items. `sampled`: the positives of the batch and sampled negatives. `in_batch`: one positive per
    anchor, which is a negative of the other anchors. `mixed`: both. `auto`: the catalog if it is small, otherwise
    sampled."""
    max_positives: Count = 4_096
    """`sampled`: maximum number of positives in a batch."""
    negatives: Count = 1_024
    """`sampled` and `mixed`: number of sampled negatives in a batch. Larger numbers take longer and rarely help above
    1,024."""
    popularity_power: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Negatives are sampled in proportion to popularity to this power. 0 samples uniformly, 1 prefers popular items."""
    popularity_correction: Share = 0.0
    """Factor of the log popularity that is added to the scores in training. With 0, embeddings express which items
    are used together; with 1, how much more often than their popularity predicts. Higher values improve rare items and
    make new items worse."""
    hard_negatives: Annotated[int, Field(ge=0)] = 0
    """Number of hard negatives per anchor: near items that are not positives. Not used with `catalog`, which contains
    them."""


class TrainConfig(Table):
    """Training of the tower."""

    loss: Literal["cross_entropy", "contrastive", "triplet"] = "cross_entropy"
    """Loss function. `cross_entropy` for interactions, `contrastive` for labeled pairs; see
    `docs/explanation/losses.md`."""
    temperature: Positive = 0.1
    """Cross-entropy: divisor of the similarity before the softmax. Smaller values concentrate on the nearest
    candidates."""
    margin: Positive = 0.5
    """Contrastive: smallest distance of a negative from the anchor. Triplet: by how much a negative must be farther
    from the anchor than a positive."""
    mining: Literal["semi_hard", "hard", "soft_margin"] = "semi_hard"
    """Triplet: which negative is used for each positive. `soft_margin` uses the nearest, and log(1 + exp) instead of a
    margin."""
    passes: Count = 20
    """Maximum number of passes over the anchors; early stopping usually ends training earlier."""
    patience: Count = 2
    """Number of passes without a better validation score after which training stops."""
    history_passes: Annotated[int, Field(ge=0)] = 1
    """Number of passes over users' histories after those over pairs. They improve queries with several items, and are
    discarded if they lower the validation score by more than 2%. 0 saves time if all queries have a single item."""
    batch_size: Count = 256
    """Number of anchors in a training step."""
    learning_rate: Positive = 0.003
    """Learning rate of Adam."""
    learning_rates: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Factor of the learning rate by encoder ("id", "numeric", or a column), instead of the automatic one. 0 freezes
    the encoder."""
    thaw_after: Annotated[int, Field(ge=0)] = 0
    """Number of passes after which frozen encoders are trained too. 0: never."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of AdamW for everything but biases."""
    new_items: bool = True
    """Whether items without interactions have separate encoders, which are trained last. Turn it off to save time if
    the catalog has no new items."""
    anchor_power: Share = 1.0
    """The weight of an anchor in the loss is its total pair weight to this power. 0 weighs all anchors equally."""
    validation_queries: Count = 5_000
    """Maximum number of validation queries that are evaluated after each pass. More queries give a less noisy score and
    take longer."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    """Seed of initial weights, order of anchors, dropout and samples."""


class SimilarConfig(Table):
    """Training for the sense `similar`. Other settings are those of `[tower]`, `[candidates]` and `[train]`."""

    enabled: bool = True
    """Whether the sense `similar` may have its own embeddings: they are trained if long histories tell what is alike
    from what is used next. Turn it off to save time."""
    penalty: Positive = 200.0
    """L2 penalty of the partial weights that are the pairs of `similar`. Larger values trust only associations of many
    users."""
    learning_rate: Positive = 0.01
    """Learning rate of Adam."""
    temperature: Positive = 0.1
    """Divisor of the similarity before the softmax of the cross-entropy. Smaller values concentrate on the nearest
    candidates."""
    passes: Count = 20
    """Maximum number of passes over the anchors. Training ends earlier if the agreement with other users falls."""


class IndexConfig(Table):
    """The Annoy index of the embeddings."""

    n_trees: Count = 50
    """Number of Annoy trees. With more trees the index is larger, and queries are faster at the same recall."""
    recall_target: Share = 0.98
    """Share of the exact 20 nearest neighbors that the index must return; the search is tuned to it. Queries are
    slower with higher values."""
    recall_floor: Share = 0.95
    """The run fails if the tuned recall is below this."""

    @model_validator(mode="after")
    def _floor_below_target(self) -> IndexConfig:
        if self.recall_floor > self.recall_target:
            raise ValueError("recall_floor must not be above recall_target")
        return self


class Span(Table):
    """A range of numbers to search."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Search on a logarithmic scale."""

    @model_validator(mode="after")
    def _in_order(self) -> Span:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("low must be below high, and above 0 on a logarithmic scale")
        return self


Range = Span | Annotated[list[bool | int | float | str], Field(min_length=1)]
"""Values that tuning may choose."""


class EvaluateConfig(Table):
    """Which interactions are held out to evaluate a release."""

    split: Literal["leave_one_out", "global_time"] = "leave_one_out"
    """`leave_one_out`: the last item of each user is held out. `global_time`: everything after an instant is held out,
    and the first item of each user after it is the target; stricter, and requires users who are active after it."""
    test_days: Positive = 1.0
    """`global_time`: number of days before the newest interaction that are held out for the test."""
    validation_days: Positive = 1.0
    """`global_time`: number of days before those that are held out for validation."""
    users: Count = 20_000
    """Maximum number of users to evaluate, and of validation queries that the baselines are tuned on; a fixed sample if
    there are more. With more users, the confidence intervals are narrower and evaluation takes longer."""


ExportedAnswer = Literal["similar", "next", "together"]


class ExportConfig(Table):
    """Export of the nearest neighbors of all items, for readers that do not query the service."""

    to: Annotated[str, Field(repr=False)] = "neighbors.parquet"
    """Target of the export: a folder of Parquet files or a file ending in `.jsonl`, by path or URL, or a database:
    `sqlite:///FILE`, `postgresql://`, `redis://` or `rediss://`. See `docs/how-to/export.md`, also for passwords."""
    answer: ExportedAnswer = "similar"
    """What is exported of each item: the nearest items in the sense `similar` or `next`, or the items that users
    interact with after it (`together`)."""
    k: Count = 20
    """Number of neighbors per item; fewer if the catalog or the filters allow no more."""
    min_similarity: float | None = None
    """Smallest similarity of a neighbor; not with `together`."""
    min_interactions: Annotated[int, Field(ge=0)] = 0
    """Smallest number of interactions of a neighbor."""
    where: dict[str, Annotated[list[int | float | str], Field(min_length=1)]] = {}
    """Catalog column -> values: a neighbor must have one of them."""

    @model_validator(mode="after")
    def _validate_minimum(self) -> ExportConfig:
        if self.answer == "together" and self.min_similarity is not None:
            raise ValueError(f"min_similarity must not be set with answer 'together'. Received: {self.min_similarity}")
        return self


class TuneConfig(Table):
    """Search for better settings of one sense, which is an option of `recsys tune`."""

    minutes: Positive = 30.0
    """Time for all trials together, in minutes; the time before an interruption counts too."""
    trials: Count = 200
    """Maximum number of trials."""
    ranges: dict[str, Range] = {
        "train.temperature": Span(low=0.05, high=0.25, log=True),
        "train.learning_rate": Span(low=0.001, high=0.006, log=True),
        "train.anchor_power": Span(low=0.5, high=1.0),
        "candidates.popularity_correction": Span(low=0.0, high=0.7),
        "prepare.window": [3, 5, 10, 20],
        "prepare.decay": Span(low=0.3, high=1.5),
        "prepare.user_power": Span(low=0.0, high=1.0),
        "train.history_passes": [1, 2],
        "similar.penalty": Span(low=50.0, high=1_000.0, log=True),
        "similar.learning_rate": Span(low=0.003, high=0.03, log=True),
        "similar.temperature": Span(low=0.05, high=0.2, log=True),
    }
    """Setting -> values to try: a list, or { low, high, log }. A search for the sense `similar` uses the settings of
    `[similar]`, a search for `next` all others."""


DataSensitivity = Literal["low", "normal", "high"]


class PromoteConfig(Table):
    """When a release replaces the champion. `docs/explanation/promotion.md` explains how to read a rejection."""

    tolerance: Share = 0.05
    """Largest loss of NDCG@20 against the champion, as a share of the champion's NDCG@20. The lower bound of the
    interval of the difference is compared. With few users the limit is larger, at least five standard errors."""
    stratum_tolerance: Share = 0.5
    """The same for each of head, torso, tail and new items. Lower it if the tail is important."""
    quality_floor: Share | None = None
    """Smallest NDCG@20. By default that of the popularity baseline of the same run."""
    overlap_floor: Share = 0.2
    """Smallest share of the ten nearest neighbors that an item has in common with the champion's, on average. Lower it
    for a run in which neighbors are meant to change."""
    latency_ms: Positive = 20.0
    """Median query latency, in milliseconds, that is always acceptable. Above it, up to three times the champion's
    latency is accepted."""
    data_sensitivity: DataSensitivity = "normal"
    """How much the data may differ from the champion's data before the release is rejected: volume, users, items,
    days, categories, distributions. Use `low` for a run whose data changed on purpose. The run report shows the
    limits."""


class NotifyConfig(Table):
    """Notifications at the end of a nightly run. See `docs/how-to/schedule.md`."""

    webhook: Annotated[str | None, Field(repr=False)] = None
    """URL that receives the summary of the run as JSON. The environment variable RECSYS_WEBHOOK takes precedence."""
    command: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Program and arguments that receive the summary on standard input; no shell is involved."""
    on: Annotated[tuple[Literal["promoted", "passed", "published", "rejected", "failed"], ...], Field(strict=False)] = (
        "promoted",
        "passed",
        "published",
        "rejected",
        "failed",
    )
    """Outcomes that trigger a notification."""


class TrackingConfig(Table):
    """Tracking and model registry of MLflow."""

    uri: str | None = None
    """Tracking URI. By default, an SQLite file in the workspace."""
    experiment: str = "recsys"
    """Name of the experiment."""
    model: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "item-tower"
    """Name of the registered model."""


class BeamConfig(Table):
    """How the Beam jobs run. Results do not depend on it."""

    profile: Literal["local", "local-threads", "portable", "flink", "spark", "dataflow"] = "local"
    """`local`: one worker in this process. `local-threads`: threads. `portable`: a separate job server and worker pool.
    `flink`, `spark`, `dataflow`: a cluster; see `docs/how-to/runners.md`."""
    workers: Count = 2
    """Number of threads of `local-threads`, or of units processed at a time on a cluster."""
    options: Annotated[dict[str, JsonValue], Field(repr=False)] = {}
    """Beam options by their own names; they override those of the profile. Unknown options are errors."""


class ResourcesConfig(Table):
    """The memory of a run, which determines the size of its units of work."""

    memory_mb: Positive = 4_000.0
    """Memory in megabytes that one process of a run may use for data. Lower it on a small machine; the work is then
    divided into more, smaller units and takes longer. With several workers on one machine, each may use this amount."""

    @property
    def rows_per_unit(self) -> int:
        """Rows of interactions or items in one unit of `prepare`: sorting and counting pairs take up to 8 kB a row."""
        return self._amount(125)

    @property
    def shuffled_pairs(self) -> int:
        """Pairs that `train` shuffles in memory at a time: a quarter of the memory, which Keras and the tower share."""
        return self._amount(1_000)

    @property
    def embedded_items(self) -> int:
        """Items in one unit of `embed`."""
        return self._amount(32.768)

    @property
    def shard_items(self) -> int:
        """Items in one file of the index: Annoy builds in memory, 2 kB an item of 128 dimensions with 50 trees."""
        return self._amount(250)

    @property
    def exported_items(self) -> int:
        """Items in one unit of `export` and of the neighbor table, and in one Parquet file."""
        return self._amount(1.25)

    def _amount(self, per_mb: float) -> int:
        return max(1, round(self.memory_mb * per_mb))


class ServeConfig(Table):
    """The query service."""

    host: str = "127.0.0.1"
    """Address to listen on. The default accepts connections from this machine only."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 selects a free one."""
    max_k: Count = 1_000
    """Maximum number of neighbors in a query, including those skipped by its offset."""
    workers: Count = 1
    """Number of worker processes. They share the memory of index and embeddings."""
    folder: str | None = None
    """Local folder for item changes and for the releases served last. By default, `serving` in the workspace."""
    poll_seconds: Positive = 10.0
    """Seconds between checks for a new champion."""
    keep_seconds: Positive = 600.0
    """Seconds for which a replaced release stays loaded, so that pagination can continue."""
    challenger: Literal["none", "shadow", "canary"] = "none"
    """`shadow`: the challenger receives queries too, and its results are compared but not returned. `canary`: it
    answers a share of the queries."""
    challenger_share: Share = 0.1
    """Share of the queries that the challenger receives. For a canary, the value of the header `Recsys-Sticky-Key`
    determines which release answers."""
    keys: str | None = None
    """File of API keys, as `recsys keys new` creates them. By default, the keys in the environment variable
    RECSYS_KEYS; without keys, all clients may read and none may write."""
    rate: Positive | None = None
    """Maximum number of requests per second for each API key, over all workers. By default, unlimited."""
    timeout_seconds: Positive = 10.0
    """Maximum duration of a request, in seconds."""
    max_concurrent: Count = 256
    """Maximum number of concurrent requests per worker; further requests are rejected with status 503."""


SHAPING = {
    "items",
    "column_rules",
    "prepare",
    "tower",
    "candidates",
    "train",
    "similar",
    "index",
    "evaluate",
    "resources",
}
"""Tables that can change a release."""


class Config(Table):
    """The whole config file."""

    data: DataConfig = DataConfig()
    items: ItemsConfig = ItemsConfig()
    column_rules: ColumnRulesConfig = ColumnRulesConfig()
    prepare: PrepareConfig = PrepareConfig()
    tower: TowerConfig = TowerConfig()
    candidates: CandidatesConfig = CandidatesConfig()
    train: TrainConfig = TrainConfig()
    similar: SimilarConfig = SimilarConfig()
    index: IndexConfig = IndexConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    promote: PromoteConfig = PromoteConfig()
    notify: NotifyConfig = NotifyConfig()
    tune: TuneConfig = TuneConfig()
    tracking: TrackingConfig = TrackingConfig()
    beam: BeamConfig = BeamConfig()
    resources: ResourcesConfig = ResourcesConfig()
    serve: ServeConfig = ServeConfig()

    @field_validator("column_rules")
    @classmethod
    def _check_column_rules(cls, column_rules: ColumnRulesConfig, read: ValidationInfo) -> ColumnRulesConfig:
        if {"data", "items"} <= read.data.keys():  # else the model reports those
            check_column_rules("interactions", column_rules.interactions, INTERACTION_KINDS)
            check_column_rules("items", column_rules.items, read.data["items"].kinds)
            if column_rules.items and read.data["data"].items is None:
                raise ValueError("items can only be checked where data.items is set")
        return column_rules

    def shaping(self) -> dict[str, Any]:
        """Every setting that can change a release; locations and settings of runners and of the service cannot."""
        return self.model_dump(mode="json", include=SHAPING)

    def fingerprint(self) -> str:
        """SHA-256 of the settings that can change a release."""
        return hashlib.sha256(json.dumps(self.shaping(), sort_keys=True).encode()).hexdigest()

    @property
    def workspace(self) -> Path:
        """Folder for runs and releases."""
        return Path(self.data.workspace)

    @property
    def tracking_uri(self) -> str:
        """The tracking URI of MLflow, or its default."""
        return self.tracking.uri or f"sqlite:///{self.workspace.resolve() / 'mlflow.db'}"
