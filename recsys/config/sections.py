"""The settings: one frozen pydantic model per table of the TOML file. Unknown keys are errors."""

from __future__ import annotations

import difflib
import hashlib
import json
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)

from recsys.config.urls import Address

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Columns = Annotated[tuple[str, ...], Field(strict=False)]
WindowAndDecay = Annotated[tuple[Count, Annotated[float, Field(ge=0)]], Field(strict=False)]


RESERVED = {"item_id", "interactions", "available"}
"""Columns of the catalog that are no features; `title` is one only where it is the title."""


class Table(BaseModel):
    """Base of all tables: frozen, strictly typed, no unknown keys, no NaN."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataConfig(Table):
    """Where the input lies and where the work goes."""

    interactions: str | None = None
    """Interactions: a path, a URL (`s3://bucket/log/*.parquet`) or a glob; Parquet, CSV (also .gz) or JSON lines (also
    .gz). `docs/how-to/storage.md` says more of URLs.
    Every stage of a night needs them; the service reads none."""
    items: str | None = None
    """Items, in the same formats. Without it the catalog is the items that somebody touched."""
    labeled_pairs: str | None = None
    """Pairs of items that people judged, in the same formats: `item_a`, `item_b`, `same` (0 or 1). With them the
    tower is trained on those alone; interactions still say when to stop, and measure."""
    feedback: str | None = None
    """How often what a release showed was clicked, in the same formats: `release_id`, `shown` and `clicked`. The
    night's report turns it into click-through by release; nothing is trained on it."""
    warm_start: str | None = None
    """Folder or URL of a release whose tower training goes on from. New items start from their features."""
    workspace: str = "workspace"
    """Folder of this machine for runs, releases and, by default, the MLflow database."""
    releases: str | None = None
    """Folder or URL that finished releases are copied to, for services elsewhere. A release there is never replaced."""

    @field_validator("workspace")
    @classmethod
    def _local(cls, workspace: str) -> str:
        if Address(workspace).scheme is not None:
            raise ValueError("must be a folder of this machine. data.releases may be a URL")
        return workspace


class ItemsConfig(Table):
    """Which column of the items is what. `item_id` is always the id."""

    title: str | None = None
    """Column shown to people."""
    categorical: Columns = ()
    """Columns with one value of a set each (brand, language)."""
    multi_categorical: Columns = ()
    """Columns with several values each (genres, tags): lists, or text cut at `separator`."""
    separator: str = "|"
    """Cuts the text of multi-categorical columns. Only text: lists are taken as they are."""
    numeric: Columns = ()
    """Columns with a number each (year, price). Missing values are allowed."""
    text: Columns = ()
    """Columns of free text (title, description). The title may be one."""
    available: str | None = None
    """Column that says whether an item can be had: true or false, or 1 or 0, also as text. Empty is true. Questions
    may ask for available items only."""

    @model_validator(mode="after")
    def _one_role_a_column(self) -> ItemsConfig:
        roles = [*self.categorical, *self.multi_categorical, *self.numeric]
        taken = RESERVED & {*roles, *self.text}
        if taken or (self.title != "title" and "title" in [*roles, *self.text]):
            raise ValueError(f"no feature may be called {', '.join(sorted(taken)) or 'title'}: the catalog has it")
        roles += filter(None, [self.available])
        roles += self.text  # the title may be read as text
        twice = sorted({column for column in roles if roles.count(column) > 1})
        if twice:
            raise ValueError(f"a column may have one role only; named twice: {', '.join(twice)}")
        return self

    @property
    def kinds(self) -> dict[str, str]:
        """Columns that are read -> their kind."""
        return {
            **dict.fromkeys(("item_id", *filter(None, [self.title]), *self.categorical, *self.text), "text"),
            **dict.fromkeys(self.multi_categorical, "lists of text"),
            **dict.fromkeys(self.numeric, "numbers"),
        }


def _instant(of_day: time) -> BeforeValidator:
    """Reads a moment; one without a zone is UTC, a date stands for this time of the day."""

    def read(value: Any) -> Any:
        try:
            moment = datetime.fromisoformat(value) if isinstance(value, str) and "T" in value else value
            moment = date.fromisoformat(moment) if isinstance(moment, str) else moment
        except ValueError:
            return value  # the model reports it
        if isinstance(moment, date) and not isinstance(moment, datetime):
            moment = datetime.combine(moment, of_day)
        return moment.replace(tzinfo=moment.tzinfo or UTC) if isinstance(moment, datetime) else value

    return BeforeValidator(read)


class Contract(Table):
    """What the values of one column have to be. A rule that is left out allows everything."""

    type: Literal["integer", "number"] | None = None
    """What text has to be, or a number: `integer` has no fraction. `number` is implied where numbers are asked for."""
    min: float | None = None
    """Smallest number."""
    max: float | None = None
    """Largest number."""
    allowed: Annotated[tuple[str | float, ...], Field(strict=False, min_length=1)] | None = None
    """All values that there may be: texts or numbers."""
    earliest: Annotated[datetime, _instant(time.min)] | None = None
    """First moment of a timestamp. A date begins at midnight UTC."""
    latest: Annotated[datetime, _instant(time.max)] | None = None
    """Last moment of a timestamp. A date ends before midnight UTC."""
    missing: bool = True
    """Whether a value may be missing: empty, blank or not there."""

    @property
    def of_numbers(self) -> bool:
        """Whether a rule asks for numbers."""
        numbers = self.allowed is not None and not isinstance(self.allowed[0], str)
        return numbers or any(rule is not None for rule in (self.type, self.min, self.max))

    @property
    def rules(self) -> set[str]:
        """The rules that are stated."""
        return set(self.model_dump(exclude_defaults=True))

    @model_validator(mode="after")
    def _make_sense(self) -> Contract:
        if not self.rules:
            raise ValueError(f"a contract must state a rule: {', '.join(Contract.model_fields)}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min must not be above max")
        if self.earliest is not None and self.latest is not None and self.earliest > self.latest:
            raise ValueError("earliest must not be after latest")
        if self.allowed is not None and len({isinstance(value, str) for value in self.allowed}) > 1:
            raise ValueError("allowed must list texts or numbers, not both")
        if self.allowed is not None and self.rules & {"type", "min", "max"}:
            raise ValueError("allowed names all values: type, min and max must be left out")
        return self


RULES = {
    "text": {"type", "min", "max", "allowed", "missing"},
    "numbers": {"type", "min", "max", "allowed", "missing"},
    "lists of text": {"allowed", "missing"},
    "timestamps": {"earliest", "latest", "missing"},
}
"""Kind of a column -> the rules that it may have."""
INTERACTION_KINDS = {
    "user_id": "text",
    "item_id": "text",
    "timestamp": "timestamps",
    "weight": "numbers",
    "event": "text",
}
"""Columns of the interactions -> their kind."""


class ContractsConfig(Table):
    """What the team promises of its data. A row that breaks it is a dead letter."""

    interactions: dict[str, Contract] = {}
    """Column -> its contract: `user_id`, `item_id`, `timestamp`, `weight` or `event`."""
    items: dict[str, Contract] = {}
    """Column -> its contract: `item_id`, or a column that [items] names."""


def _require_sense(table: str, contracts: dict[str, Contract], kinds: dict[str, str]) -> None:
    """Refuse contracts of columns that are not read, and rules that do not go with a column's kind."""
    for column, contract in contracts.items():
        if column not in kinds:
            close = difflib.get_close_matches(column, kinds, n=1)
            known = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(kinds)}"
            raise ValueError(f"{table}.{column} must be a column that is read ({known})")
        kind = kinds[column]
        wrong = contract.rules - RULES[kind]
        if wrong:
            takes = ", ".join(sorted(RULES[kind]))
            raise ValueError(f"{table}.{column} holds {kind}, which takes {takes}: not {', '.join(sorted(wrong))}")
        if contract.allowed is not None and kind != "text" and contract.of_numbers != (kind == "numbers"):
            raise ValueError(f"{table}.{column} holds {kind}: allowed must list such values")


class PrepareConfig(Table):
    """Interactions -> catalog, sequences and pairs."""

    as_of: Annotated[datetime, _instant(time.min)] | None = None
    """Only interactions before this moment are used, as if the night were of then. A date is its midnight UTC. Items
    have no time: all of them are used."""
    window: Count = 10
    """Two items of one user make a pair if at most this many positions apart. More is slower."""
    decay: Annotated[float, Field(ge=0)] = 1.0
    """A pair `gap` positions apart weighs gap ** -decay. 0 weighs all alike."""
    directed: bool = False
    """Only what came later is a positive of what came before. Otherwise each is one of the other."""
    session_gap_minutes: Positive | None = None
    """A longer pause of a user ends a session: no pair reaches across it."""
    half_life_days: Positive | None = None
    """A pair weighs half for each so many days before the newest interaction of the log."""
    max_user_interactions: Annotated[int, Field(ge=2)] = 10_000
    """Only so many of a user's newest interactions make pairs: a bot must not outweigh the others. The manifest
    counts those that are over it."""
    user_power: Share = 0.0
    """A user's pairs are divided by their summed weight to this power. 1 lets all users count alike."""
    event_weights: dict[str, Positive] = {}
    """Factor of an interaction by its `event`. Events that are not named are filtered out; {} keeps all alike."""
    max_dead_letter_ratio: Share = 0.01
    """The job stops when a larger share of the rows is bad."""


class TowerConfig(Table):
    """The encoder that both sides of a pair share."""

    dimension: Annotated[int, Field(ge=2)] = 128
    """Length of an embedding. More is slower everywhere and rarely better above 128."""
    distance: Literal["cosine", "euclidean", "manhattan"] = "cosine"
    """What "near" means: in training, in the index and in the similarity of an answer."""
    fusion: Literal["sum", "concatenation", "gating"] = "sum"
    """How the encoded features become one vector. Gating weighs them item by item."""
    text_encoder: Literal["bag", "convolutional", "recurrent"] = "bag"
    """Text: a bag of word and character n-grams, or words in their order. A bag is fastest."""
    min_count: Count = 1
    """Items with fewer pairs share hashed id buckets instead of an id of their own."""
    hash_buckets: Count = 1_024
    """Buckets of those items."""
    hidden: Annotated[tuple[Count, ...], Field(strict=False)] = ()
    """Sizes of the hidden layers between the summed features and the embedding."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout after each hidden layer."""
    id_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of items whose id is hidden at each step. `train.new_items` serves new items better."""


class CandidatesConfig(Table):
    """What an anchor's positives are told apart from."""

    kind: Literal["auto", "catalog", "sampled", "in_batch", "mixed"] = "auto"
    """`catalog`: all items. `sampled`: the batch's positives and drawn negatives. `in_batch`: one drawn positive
    an anchor, each the others' negative. `mixed`: the same and drawn negatives. `auto`: the catalog while small."""
    whole_catalog_up_to: Count = 5_000
    """`auto` takes the whole catalog up to this many items, and samples above."""
    max_positives: Count = 4_096
    """`sampled`: at most so many positives of the batch."""
    negatives: Count = 1_024
    """`sampled` and `mixed`: negatives drawn a step."""
    popularity_power: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Negatives are drawn in proportion to popularity to this power. 0 draws all alike, 1 popular ones more."""
    popularity_correction: Share = 0.0
    """0 learns what is touched together; 1 what is so beyond popularity. More is a longer tail, and worse for items
    that nobody touched yet."""
    hard_negatives: Annotated[int, Field(ge=0)] = 0
    """Near items that are no positives, added for each anchor. Not with `catalog`, which has them."""
    hard_ranks: Annotated[tuple[Count, Count], Field(strict=False)] = (100, 500)
    """Hard negatives are drawn from these ranks (first, last) of an anchor's neighbors."""
    hard_margin: Share = 0.05
    """A hard negative must be less similar than this share below the least similar positive: false ones are near."""
    hard_after: Count = 1
    """Passes before the first hard negatives: neighbors must mean something first."""

    @model_validator(mode="after")
    def _ranks_in_order(self) -> CandidatesConfig:
        if self.hard_ranks[0] > self.hard_ranks[1]:
            raise ValueError("hard_ranks must be a first rank and a last one that is not before it")
        return self


class TrainConfig(Table):
    """Pairs -> tower."""

    loss: Literal["cross_entropy", "contrastive", "triplet"] = "cross_entropy"
    """`docs/explanation/losses.md` says when to use which. Cross-entropy is the one for interactions."""
    temperature: Positive = 0.1
    """Cross-entropy: divides the similarity before the softmax. Smaller looks harder at the nearest candidates."""
    margin: Positive = 0.5
    """Contrastive and triplet: how far negatives have to stay."""
    mining: Literal["semi_hard", "hard", "soft_margin"] = "semi_hard"
    """Triplet: the negative for each positive. `soft_margin` takes the hardest, and log(1 + exp) for the margin."""
    passes: Count = 20
    """Passes over the anchors at most; early stopping usually ends before."""
    patience: Count = 4
    """Passes without a better validation NDCG@20 before training stops."""
    history_passes: Annotated[int, Field(ge=0)] = 1
    """Passes over users' histories after those over the pairs, dropped where they are worse: better look-ups from
    several items. One costs several passes over pairs."""
    batch_size: Count = 256
    """Anchors a step."""
    learning_rate: Positive = 0.003
    """Adam's learning rate."""
    feature_lead: Annotated[float, Field(ge=0)] = 150.0
    """Features, but text that is read word by word, learn so many times faster than ids, divided by the mean number of
    an item's interactions, and 1 to 10 times: the less is known of items one by one, the more of what they share. 0
    lets ids learn as fast."""
    learning_rates: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Factor of the learning rate by encoder, instead: "id", "numeric", or a column. 0 freezes it."""
    thaw_after: Annotated[int, Field(ge=0)] = 0
    """Passes after which frozen encoders learn too. 0: never."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's weight decay of everything but biases."""
    new_items: bool = True
    """At the end, train encoders of their own for items without interactions, by their features: twice as many passes
    as over pairs. Nothing changes for the others. Without them a new item is what known items' features make of it."""
    anchor_power: Share = 1.0
    """An anchor counts with its summed pair weight to this power. 0 counts all anchors alike."""
    validation_users: Count = 10_000
    """Users whose validation target is looked up after each pass."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    """Seed of initial weights, order of anchors, dropout and samples."""


class IndexConfig(Table):
    """Embeddings -> Annoy index."""

    n_trees: Count = 50
    """Annoy's number of trees: more is a larger file and a better recall at the same search_k."""
    recall_target: Share = 0.98
    """search_k is tuned to the smallest value that reaches this recall."""
    recall_floor: Share = 0.95
    """Below this recall the build fails."""

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
    and the first item of each user after it is the target; stricter, and needs users who are active in that time."""
    test_days: Positive = 1.0
    """`global_time`: number of days before the newest interaction that are held out for the test."""
    validation_days: Positive = 1.0
    """`global_time`: number of days before those that are held out for validation."""
    users: Count = 20_000
    """Maximum number of users to evaluate; a fixed sample if there are more. More users narrow the intervals and take
    longer."""


class ExportConfig(Table):
    """Release -> the nearest of every item, exported for readers that do not ask the service."""

    to: Annotated[str, Field(repr=False)] = "neighbors.parquet"
    """Where to: a folder of Parquet files or a file that ends in `.jsonl`, either also by a URL (`s3://`, `gs://`), or
    a server: `sqlite:///FILE`, `postgresql://`, `redis://` or `rediss://`. `docs/how-to/export.md` says what
    readers find there, and where a password goes."""
    k: Count = 20
    """Neighbors of an item; fewer where the catalog, or what is let through, holds no more."""
    min_similarity: float | None = None
    """Less similar items are no neighbors."""
    min_interactions: Annotated[int, Field(ge=0)] = 0
    """Items with fewer interactions are nobody's neighbors."""
    where: dict[str, Annotated[list[int | float | str], Field(min_length=1)]] = {}
    """Column of the catalog -> values: items with none of them there are nobody's neighbors."""


class TuneConfig(Table):
    """Search for better settings on the validation target."""

    minutes: Positive = 30.0
    """Time for all trials together; a tuning that is resumed counts on."""
    trials: Count = 200
    """Trials at most."""
    ranges: dict[str, Range] = {
        "train.temperature": Span(low=0.05, high=0.25, log=True),
        "train.learning_rate": Span(low=0.001, high=0.006, log=True),
        "train.feature_lead": Span(low=30.0, high=500.0, log=True),
        "train.anchor_power": Span(low=0.5, high=1.0),
        "candidates.popularity_correction": Span(low=0.0, high=0.7),
        "prepare.window": [3, 5, 10, 20],
        "prepare.decay": Span(low=0.3, high=1.5),
        "prepare.user_power": Span(low=0.0, high=1.0),
        "train.history_passes": [1, 2],
    }
    """Setting -> its values: a list to choose from, or {low, high, log}."""


DataSensitivity = Literal["low", "normal", "high"]


class PromoteConfig(Table):
    """When a release replaces the champion. `docs/explanation/promotion.md` explains how to read a refusal."""

    tolerance: Share = 0.05
    """Largest loss of NDCG@20 against the champion, as a share of the champion's. The lower bound of the interval of
    the difference is compared; with few users the limit is what their number can show."""
    stratum_tolerance: Share = 0.5
    """The same for each of head, torso, tail and new items. Lower it if the tail matters."""
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
    days, categories, distributions. Use `low` for a run whose data changed on purpose. The report prints the limits."""


class NotifyConfig(Table):
    """Who is told how a night ended. `docs/how-to/schedule.md` says what they are told."""

    webhook: Annotated[str | None, Field(repr=False)] = None
    """URL that gets the summary of the night as JSON. RECSYS_WEBHOOK in the environment goes before it."""
    command: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Program and arguments that get the same on standard input; no shell reads them."""
    on: Annotated[tuple[Literal["promoted", "passed", "published", "refused", "failed"], ...], Field(strict=False)] = (
        "promoted",
        "passed",
        "published",
        "refused",
        "failed",
    )
    """Ends of a night that they are told of."""


class TrackingConfig(Table):
    """MLflow."""

    uri: str | None = None
    """Tracking URI. Without it: an SQLite file in the workspace."""
    experiment: str = "recsys"
    """Name of the experiment."""
    model: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "item-tower"
    """Name of the registered model."""


class BeamConfig(Table):
    """How the Beam jobs run. Releases do not depend on it."""

    profile: Literal["local", "local-threads", "portable", "flink", "spark", "dataflow"] = "local"
    """`local`: one worker in this process. `local-threads`: `workers` threads. `portable`: a job server and a worker
    of their own. `flink`, `spark`, `dataflow`: a cluster; `docs/how-to/runners.md` says what each needs."""
    workers: Count = 2
    """Threads of `local-threads`; on a cluster, units that are worked on at a time."""
    options: Annotated[dict[str, JsonValue], Field(repr=False)] = {}
    """Options of Beam itself, by its names, over those of the profile. One that Beam does not know is an error."""


class ResourcesConfig(Table):
    """The memory of a run. It decides how the work is divided."""

    memory_mb: Positive = 4_000.0
    """Memory in megabytes that one process of a run may use for data. Lower it on a small machine; the work is then
    divided into more, smaller units and takes longer. With several workers on one machine, each may use as much."""

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
        """Items in one unit of `export`, and in one Parquet file."""
        return self._amount(1.25)

    def _amount(self, per_mb: float) -> int:
        return max(1, round(self.memory_mb * per_mb))


class ServeConfig(Table):
    """The look-up service."""

    host: str = "127.0.0.1"
    """Address to listen on. Loopback unless you say otherwise."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port; 0 takes a free one."""
    max_k: Count = 1_000
    """Most neighbors that one question may ask for, with those that its offset skips."""
    max_items: Count = 1_000
    """Most ids, or values, that one list of a question may hold."""
    max_batch: Count = 100
    """Most questions that one request may hold."""
    workers: Count = 1
    """Processes that answer. They share the memory of index and embeddings."""
    folder: str | None = None
    """Folder of this machine for the journal of changes and for what was served last. Without it: `serving` in the
    workspace."""
    poll_s: Positive = 10.0
    """Seconds between two looks at which release is the champion."""
    keep_s: Positive = 600.0
    """Seconds that a replaced release stays loaded, for pages that were begun on it."""
    challenger: Literal["none", "shadow", "canary"] = "none"
    """`shadow`: the challenger is asked too, compared and not shown. `canary`: it answers a share of the traffic."""
    challenger_share: Share = 0.1
    """Share of the questions that the challenger is asked; a canary's goes by the key in `Recsys-Sticky-Key`."""
    night_h: Positive = 24.0
    """Hours that a night may take: a release built so much later than a change of an item stands above that change. A
    take-down holds until the item is put back."""
    keys: str | None = None
    """File of API keys, as `recsys keys new` makes them. Without it: those in the environment variable RECSYS_KEYS, and
    where there are none, everybody may ask and nobody may write."""
    rate: Positive | None = None
    """Requests a second of each API key, over all workers; a second's worth may come at once. Without it: as many as
    come."""
    max_body_bytes: Count = 1_048_576
    """Largest body of a request."""
    timeout_s: Positive = 10.0
    """Seconds after which a request that waits, for its body or for the disk, is given up."""
    max_concurrent: Count = 256
    """Requests at a time of each worker. More are told to come back, rather than queued."""


SHAPING = {
    "items",
    "contracts",
    "prepare",
    "tower",
    "candidates",
    "train",
    "index",
    "evaluate",
    "resources",
}
"""Tables that can change a release."""


class Config(Table):
    """The whole file."""

    data: DataConfig = DataConfig()
    items: ItemsConfig = ItemsConfig()
    contracts: ContractsConfig = ContractsConfig()
    prepare: PrepareConfig = PrepareConfig()
    tower: TowerConfig = TowerConfig()
    candidates: CandidatesConfig = CandidatesConfig()
    train: TrainConfig = TrainConfig()
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

    @field_validator("contracts")
    @classmethod
    def _contracts_of_what_is_read(cls, contracts: ContractsConfig, read: ValidationInfo) -> ContractsConfig:
        if {"data", "items"} <= read.data.keys():  # else the model reports those
            _require_sense("interactions", contracts.interactions, INTERACTION_KINDS)
            _require_sense("items", contracts.items, read.data["items"].kinds)
            if contracts.items and read.data["data"].items is None:
                raise ValueError("items can only be checked where data.items is set")
        return contracts

    def shaping(self) -> dict[str, Any]:
        """Every setting that can change a release: not where things lie, nor how they are run."""
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
        """MLflow's tracking URI, the default filled in."""
        return self.tracking.uri or f"sqlite:///{self.workspace.resolve() / 'mlflow.db'}"
