"""One TOML file -> frozen models, one table a stage. An unknown key is an error.

Relative paths in the file are relative to the file; those in a `--set` to the current folder.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recsys.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Columns = Annotated[tuple[str, ...], Field(strict=False)]


RESERVED = {"item_id", "interactions"}
"""Columns of the catalogue that are no features; `title` is one only where it is the title."""


class Table(BaseModel):
    """Base of all tables: frozen, strictly typed, no unknown keys, no NaN."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataConfig(Table):
    """Where the input lies and where the work goes."""

    interactions: str
    """Interactions: a path or a glob; Parquet, CSV (also .gz) or JSON lines (also .gz)."""
    items: str | None = None
    """Items, in the same formats. Without it the catalogue is the items that somebody touched."""
    workspace: str = "workspace"
    """Folder for runs, releases and, by default, the MLflow database."""


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

    @model_validator(mode="after")
    def _one_role_a_column(self) -> ItemsConfig:
        roles = [*self.categorical, *self.multi_categorical, *self.numeric]
        taken = RESERVED & {*roles}
        if taken or (self.title != "title" and "title" in roles):
            raise ValueError(f"no feature may be called {', '.join(sorted(taken)) or 'title'}: the catalogue has it")
        twice = sorted({column for column in roles if roles.count(column) > 1})
        if twice:
            raise ValueError(f"a column may have one role only; named twice: {', '.join(twice)}")
        return self


class PrepareConfig(Table):
    """Interactions -> catalogue, sequences and pairs."""

    window: Count = 10
    """Two items of one user make a pair if at most this many positions apart. More is slower."""
    decay: Annotated[float, Field(ge=0)] = 1.0
    """A pair `gap` positions apart weighs gap ** -decay. 0 weighs all alike."""
    max_dead_letter_ratio: Share = 0.01
    """The job stops when a larger share of the rows is bad."""
    rows_per_unit: Count = 500_000
    """Rows that one unit of work reads or holds: memory against number of files."""


class TowerConfig(Table):
    """The encoder that both sides of a pair share."""

    dimension: Annotated[int, Field(ge=2)] = 128
    """Length of an embedding. More is slower everywhere and rarely better above 128."""
    hidden: Annotated[tuple[Count, ...], Field(strict=False)] = ()
    """Sizes of the hidden layers between the summed features and the embedding."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout after each hidden layer."""
    id_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of items whose id is hidden at each step: lets features carry items without interactions."""


class TrainConfig(Table):
    """Pairs -> tower."""

    passes: Count = 40
    """Passes over the anchors at most; early stopping usually ends before."""
    patience: Count = 4
    """Passes without a better validation NDCG@20 before training stops."""
    batch_size: Count = 256
    """Anchors a step."""
    learning_rate: Positive = 0.003
    """Adam's learning rate."""
    temperature: Positive = 0.1
    """Divides the cosine before the softmax. Smaller looks harder at the nearest candidates."""
    anchor_power: Share = 1.0
    """An anchor counts with its summed pair weight to this power. 0 counts all anchors alike."""
    whole_catalogue_up_to: Count = 20_000
    """Up to this many items every item is a candidate at every step; above, candidates are sampled."""
    max_positives: Count = 8_192
    """Sampled candidates: at most so many positives of the batch."""
    negatives: Count = 4_096
    """Sampled candidates: uniform negatives beside the positives."""
    validation_users: Count = 20_000
    """Users whose validation target is looked up after each pass."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    """Seed of initial weights, order of anchors, dropout and samples."""


class EmbedConfig(Table):
    """Catalogue -> embeddings."""

    batch_size: Count = 4_096
    """Items a call of the tower. Speed and memory; embeddings differ by rounding at most."""
    items_per_unit: Count = 131_072
    """Items a unit of work. Speed and memory; embeddings differ by rounding at most."""


class IndexConfig(Table):
    """Embeddings -> Annoy index."""

    n_trees: Count = 50
    """Annoy's number of trees: more is a larger file and a better recall at the same search_k."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    """Annoy's seed."""
    n_jobs: Annotated[int, Field(ge=-1)] = 1
    """Annoy's build threads, -1 for all cores. Builds repeat byte for byte only with 1."""
    recall_k: Count = 20
    """Recall is the share of the exact nearest so many that the index returns."""
    recall_target: Share = 0.98
    """search_k is tuned to the smallest value that reaches this recall."""
    recall_floor: Share = 0.95
    """Below this recall the build fails."""
    max_search_k: Count = 100_000
    """Largest search_k that tuning may choose: the price in look-up time that is still bearable."""
    sample: Count = 1_000
    """Items whose neighbours are compared with exact search."""

    @model_validator(mode="after")
    def _floor_below_target(self) -> IndexConfig:
        if self.recall_floor > self.recall_target:
            raise ValueError("recall_floor must not be above recall_target")
        return self


class EvaluateConfig(Table):
    """Release and baselines on the held-out interactions."""

    users: Count = 20_000
    """Users to evaluate at most: a fixed sample of them where there are more."""
    shrinkage: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False, min_length=1)] = (
        0.0,
        10.0,
        50.0,
        100.0,
        200.0,
    )
    """Values tried for the ItemKNN baseline; the best on the validation target is used."""


class PromoteConfig(Table):
    """When a new release takes over from the champion."""

    tolerance: Share = 0.02
    """A challenger may be worse than the champion by this share of the champion's NDCG@20."""


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

    profile: Literal["local", "local-threads"] = "local"
    """`local`: one worker in this process. `local-threads`: `workers` threads."""
    workers: Count = 2
    """Threads of the profile `local-threads`."""


class ServeConfig(Table):
    """The look-up service."""

    host: str = "127.0.0.1"
    """Address to listen on. Loopback unless you say otherwise."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port; 0 takes a free one."""
    max_k: Count = 1_000
    """Most neighbours that one question may ask for."""


class Config(Table):
    """The whole file."""

    data: DataConfig
    items: ItemsConfig = ItemsConfig()
    prepare: PrepareConfig = PrepareConfig()
    tower: TowerConfig = TowerConfig()
    train: TrainConfig = TrainConfig()
    embed: EmbedConfig = EmbedConfig()
    index: IndexConfig = IndexConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    promote: PromoteConfig = PromoteConfig()
    tracking: TrackingConfig = TrackingConfig()
    beam: BeamConfig = BeamConfig()
    serve: ServeConfig = ServeConfig()

    def shaping(self) -> dict[str, Any]:
        """Every setting that can change a release: not where things lie, nor how they are run."""
        return self.model_dump(mode="json", include={"items", "prepare", "tower", "train", "index", "evaluate"})

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


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and apply `table.key=value` overrides, later ones last.

    Raises:
        ConfigError: no such file, no valid TOML, an unknown key, a value of the wrong type or range.
    """
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config file must exist. Received: {path}. Start from examples/nightly.toml.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config file {path} must be valid TOML: {error}.") from None
    _anchor_paths(tables, path.parent.resolve())
    for override in overrides:
        _apply(tables, override)
    return parse(tables, source=str(path))


def parse(tables: dict[str, Any], source: str = "config") -> Config:
    """Check a nested dictionary of tables.

    Raises:
        ConfigError: naming each wrong key, the rule and what was received.
    """
    try:
        return Config.model_validate(tables)
    except ValidationError as error:
        lines = [_explain(dict(problem)) for problem in error.errors()]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


PATH_KEYS = ("interactions", "items", "workspace")


def _anchor_paths(tables: dict[str, Any], folder: Path) -> None:
    data = tables.setdefault("data", {})
    if not isinstance(data, dict):
        return  # the model reports it
    data.setdefault("workspace", DataConfig.model_fields["workspace"].default)
    for key in PATH_KEYS:
        if isinstance(data.get(key), str):
            data[key] = str(folder / data[key])


def _apply(tables: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    table, dot, key = name.strip().partition(".")
    if not (equals and dot and table and key):
        raise ConfigError(
            f"--set must look like table.key=value. Received: {override!r}. For example: --set train.passes=5"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is text: --set items.title=name
    if table == "data" and key in PATH_KEYS and isinstance(value, str):
        value = str(Path.cwd() / value)
    target = tables.setdefault(table, {})
    if isinstance(target, dict):
        target[key] = value


def _explain(problem: dict[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    name = ".".join(location)
    received = problem.get("input")
    if problem["type"] == "extra_forbidden":
        return f"unknown key {name!r}.{_nearest(location)}"
    if problem["type"] == "missing":
        return f"{name} must be set."
    rule = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{name}: {rule}. Received: {received!r}."


def _nearest(location: list[str]) -> str:
    """The known key that looks most like the unknown one, by its own name: in its table, else in another."""
    tables = {name: cast("type[Table]", field.annotation) for name, field in Config.model_fields.items()}
    table, *rest = location
    if not rest:
        close = difflib.get_close_matches(table, tables, n=1)
        return f" Did you mean {close[0]!r}?" if close else f" Known tables: {', '.join(tables)}."
    key, own = rest[0], tables[table].model_fields
    elsewhere = {other: name for name, model in tables.items() for other in model.model_fields}
    for known, names in ((own, dict.fromkeys(own, table)), (elsewhere, elsewhere)):
        close = [key] if key in known else difflib.get_close_matches(key, known, n=1)
        if close:
            return f" Did you mean {names[close[0]] + '.' + close[0]!r}?"
    return f" Known keys of [{table}]: {', '.join(own)}."
