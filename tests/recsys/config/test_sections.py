import datetime as dt
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.config.column_rules import ColumnRules, ColumnRulesConfig
from recsys.config.loading import PATHS, load_config, parse_config
from recsys.config.sections import (
    BeamConfig,
    CandidatesConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    ExportConfig,
    IndexConfig,
    ItemsConfig,
    NotifyConfig,
    PrepareConfig,
    PromoteConfig,
    ResourcesConfig,
    ServeConfig,
    SimilarConfig,
    Span,
    TowerConfig,
    TrackingConfig,
    TrainConfig,
    TuneConfig,
)
from recsys.errors import ConfigError

DATA = {"interactions": "log.csv"}


def parse(**tables):
    return parse_config({**tables, "data": {**DATA, **tables.get("data", {})}})


def write(folder, text):
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- reading


def test_empty_table_has_the_defaults():
    assert parse(train={}) == parse()


def test_values_of_the_file_are_used(tmp_path):
    path = write(
        tmp_path,
        '[data]\ninteractions = "log.csv"\n[items]\ncategorical = ["brand", "language"]\n'
        "[tower]\nhidden = [12, 5]\n[train]\nlearning_rate = 1\n",
    )
    loaded = load_config(path)
    assert loaded.items.categorical == ("brand", "language")
    assert loaded.tower.hidden == (12, 5)
    assert loaded.train.learning_rate == 1.0


def test_config_is_immutable():
    with pytest.raises(ValueError, match="frozen"):
        parse().train.passes = 3


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[data\n", "valid TOML"), (b'[data]\ninteractions = "\xff"\n', "cannot be read")],
    ids=["no TOML", "no UTF-8"],
)
def test_error_names_an_unreadable_file(tmp_path, content, message):
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_error_names_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load_config(tmp_path / "absent.toml")


def test_rejects_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


# --- wrong keys and values


@pytest.mark.parametrize(
    ("tables", "unknown", "nearest"),
    [
        ({"train": {"batchsize": 3}}, "train.batchsize", "train.batch_size"),
        ({"tower": {"dimensions": 8}}, "tower.dimensions", "tower.dimension"),
        ({"trian": {"passes": 3}}, "trian", "train"),
        pytest.param(
            {"train": {"window": 3}},
            "train.window",
            "prepare.window",
        ),
        ({"index": {"recall_targt": 0.9}}, "index.recall_targt", "index.recall_target"),
        ({"train": {"negatives": 3}}, "train.negatives", "candidates.negatives"),
        ({"evaluate": {"user": 9}}, "evaluate.user", "evaluate.users"),
        ({"data": {"warmstart": "x"}}, "data.warmstart", "data.warm_start"),
        (
            {"column_rules": {"interactions": {"weight": {"minimum": 1}}}},
            "column_rules.interactions.weight.minimum",
            "column_rules.interactions.weight.min",
        ),
    ],
    ids=["spelling", "plural", "table", "another table's", "underscore", "moved", "list", "path", "nested"],
)
def test_error_suggests_the_nearest_key(tables, unknown, nearest):
    with pytest.raises(ConfigError) as caught:
        parse(**tables)
    assert f"unknown key {unknown!r}" in str(caught.value)
    assert f"Did you mean {nearest!r}?" in str(caught.value)


def test_error_lists_all_keys_of_the_table_without_a_near_one():
    with pytest.raises(ConfigError) as caught:
        parse(promote={"zzzz": 1})
    assert "[promote]: tolerance" in str(caught.value)


def test_error_names_a_missing_key():
    with pytest.raises(ConfigError, match=r"tune\.ranges.*low must be set"):
        parse(tune={"ranges": {"train.temperature": {"high": 0.1}}})


def test_a_service_may_have_a_config_without_data():
    assert parse_config({"serve": {"workers": 3}}).data.interactions is None


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("train", "passes", "5"),
        ("train", "passes", 5.0),
        ("train", "passes", True),
        ("train", "passes", 0),
        ("train", "learning_rate", "fast"),
        ("train", "learning_rate", float("nan")),
        ("train", "temperature", 0.0),
        ("train", "seed", 2**31),
        ("tower", "hidden", 32),
        ("tower", "hidden", ["32"]),
        ("tower", "dropout", 1.0),
        ("prepare", "decay", float("inf")),
        ("prepare", "max_dead_letter_ratio", 1.5),
        ("items", "numeric", ["year", 3]),
        ("beam", "profile", "cloud"),
        ("serve", "port", 65536),
        ("items", "text", ["blurb", 3]),
        ("prepare", "session_gap_minutes", 0),
        ("prepare", "half_life_days", -1.0),
        ("prepare", "max_user_interactions", 1),
        ("prepare", "user_power", 1.5),
        ("prepare", "directed", 1),
        ("prepare", "event_weights", 3),
        ("prepare", "min_rating", "3"),
        ("prepare", "max_per_second", 0),
        ("tower", "distance", "dot"),
        ("tower", "fusion", "mean"),
        ("tower", "text_encoder", "attention"),
        ("tower", "min_count", 0),
        ("candidates", "kind", "none"),
        ("candidates", "popularity_power", -1.5),
        ("candidates", "popularity_correction", 1.1),
        ("candidates", "hard_negatives", -1),
        ("train", "loss", "hinge"),
        ("train", "margin", 0),
        ("train", "mining", "easy"),
        ("train", "history_passes", -1),
        ("train", "thaw_after", -1),
        ("train", "weight_decay", -0.1),
        ("similar", "penalty", 0),
        ("similar", "learning_rate", -0.1),
        ("similar", "temperature", 0),
        ("similar", "passes", 0),
        ("evaluate", "split", "random"),
        ("evaluate", "test_days", 0),
        ("evaluate", "validation_days", -1.0),
        ("tune", "minutes", 0),
        ("tune", "trials", 0),
    ],
    ids="{}".format,
)
def test_error_names_the_key_and_the_received_value(table, key, value):
    with pytest.raises(ConfigError) as caught:
        parse(**{table: {key: value}})
    assert f"{table}.{key}" in str(caught.value)
    innermost = value if not isinstance(value, list) or not value else value[-1]
    assert f"Received: {innermost!r}" in str(caught.value)


def test_error_has_a_line_for_each_wrong_key():
    with pytest.raises(ConfigError) as caught:
        parse(train={"passes": 0, "bach_size": 1}, tower={"dimension": 1})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(any(key in line for line in lines) for key in ("train.passes", "train.bach_size", "tower.dimension"))


def test_rejects_a_column_with_two_roles():
    with pytest.raises(ConfigError, match="named twice: brand"):
        parse(items={"categorical": ["brand"], "multi_categorical": ["tags", "brand"]})


@pytest.mark.parametrize("column", ["item_id", "interactions"])
@pytest.mark.parametrize("role", ["categorical", "multi_categorical", "numeric", "text"])
def test_rejects_features_with_reserved_names(role, column):
    with pytest.raises(ConfigError, match=f"no feature may be called {column}"):
        parse(items={role: [column]})


def test_a_column_called_title_is_a_feature_only_where_it_is_the_title():
    with pytest.raises(ConfigError, match="no feature may be called title"):
        parse(items={"title": "name", "categorical": ["title"]})
    for role in ("categorical", "text"):
        assert getattr(parse(items={"title": "title", role: ["title"]}).items, role) == ("title",)


def test_the_title_may_be_read_as_text_but_not_twice():
    assert parse(items={"title": "name", "text": ["name", "blurb"]}).items.text == ("name", "blurb")
    with pytest.raises(ConfigError, match="named twice: blurb"):
        parse(items={"text": ["blurb"], "categorical": ["blurb"]})


def test_rejects_event_weights_that_are_not_positive():
    assert parse(prepare={"event_weights": {"view": 1, "buy": 5.5}}).prepare.event_weights == {"view": 1, "buy": 5.5}
    for weight in (0, -1.0, float("nan"), "much"):
        with pytest.raises(ConfigError, match=r"prepare\.event_weights\.view: ") as caught:
            parse(prepare={"event_weights": {"view": weight}})
        assert f"Received: {weight!r}" in str(caught.value)


def test_rejects_negative_factors_of_the_learning_rate():
    assert parse(train={"learning_rates": {"id": 0, "genre": 0.5}}).train.learning_rates == {"id": 0, "genre": 0.5}
    with pytest.raises(ConfigError, match=r"train\.learning_rates\.id: "):
        parse(train={"learning_rates": {"id": -0.5}})


def test_a_range_is_a_list_or_a_span():
    ranges = {"prepare.window": [3, 5], "train.learning_rate": {"low": 0.001, "high": 0.1, "log": True}}
    parsed = parse(tune={"ranges": ranges}).tune.ranges
    assert parsed["prepare.window"] == [3, 5]
    assert parsed["train.learning_rate"] == Span(low=0.001, high=0.1, log=True)


@pytest.mark.parametrize(
    ("span", "rule"),
    [
        ({"low": 0.5, "high": 0.5}, "low must be below high"),
        ({"low": 2.0, "high": 1.0}, "low must be below high"),
        ({"low": 0.0, "high": 1.0, "log": True}, "above 0 on a logarithmic scale"),
        ({"low": 0.0}, "high"),
        ([], "at least 1"),
    ],
    ids=["no width", "turned round", "log of 0", "half", "empty list"],
)
def test_rejects_invalid_ranges(span, rule):
    with pytest.raises(ConfigError, match=r"tune\.ranges") as caught:
        parse(tune={"ranges": {"train.margin": span}})
    assert rule in str(caught.value)
    assert "train.margin" in str(caught.value)


def test_rejects_a_recall_floor_above_the_target():
    with pytest.raises(ConfigError, match="recall_floor must not be above recall_target"):
        parse(index={"recall_floor": 0.9, "recall_target": 0.8})
    assert parse(index={"recall_floor": 0.8, "recall_target": 0.8}).index.recall_floor == 0.8


# --- column_rules


READ = {
    "data": {"items": "items.csv"},
    "items": {"title": "name", "categorical": ["brand"], "multi_categorical": ["tags"], "numeric": ["price"]},
}


def column_rules(text):
    """Contracts as they stand in a file."""
    return parse(**READ, column_rules=tomllib.loads(text)).column_rules


def test_column_rules_that_are_not_set_allow_everything():
    price = column_rules('items.price = { type = "integer", min = 1, missing = false }').items["price"]
    assert price == ColumnRules(type="integer", min=1.0, missing=False)
    assert (price.max, price.allowed, price.stated) == (None, None, {"type", "min", "missing"})


@pytest.mark.parametrize(
    ("written", "earliest", "latest"),
    [
        ("2020-02-03", (0, 0, 0, 0), (23, 59, 59, 999_999)),
        ('"2020-02-03"', (0, 0, 0, 0), (23, 59, 59, 999_999)),
        ("2020-02-03T04:05:06", (4, 5, 6, 0), (4, 5, 6, 0)),
        ("2020-02-03T06:05:06+02:00", (4, 5, 6, 0), (4, 5, 6, 0)),
        ('"2020-02-03T04:05:06Z"', (4, 5, 6, 0), (4, 5, 6, 0)),
    ],
)
def test_instant_without_a_time_zone_is_utc_and_a_date_is_the_whole_day(written, earliest, latest):
    for rule, time in (("earliest", earliest), ("latest", latest)):
        rules = column_rules(f"interactions.timestamp = {{ {rule} = {written} }}").interactions["timestamp"]
        assert getattr(rules, rule) == dt.datetime(2020, 2, 3, *time, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("items.price = {}", "column_rules.items.price: must state a rule"),
        ("items.price = { missing = true }", "column_rules.items.price: must state a rule"),
        ("items.price = { min = 3, max = 1 }", "column_rules.items.price: min must not be above max"),
        ("items.price = { min = 'low' }", "column_rules.items.price.min: "),
        ("items.price = { min = nan }", "column_rules.items.price.min: "),
        ("items.brand = { type = 'text' }", "column_rules.items.brand.type: should be 'integer' or 'number'"),
        ("items.brand = { allowed = [] }", "column_rules.items.brand.allowed: "),
        ("items.brand = { allowed = [1, 'a'] }", "allowed must list strings or numbers, not both"),
        ("items.brand = { allowed = ['a'], min = 1 }", "type, min and max must be omitted"),
        ("items.prise = { min = 1 }", "items.prise must be a column that is read (did you mean 'price'?)"),
        ("items.title = { missing = false }", "items.title must be a column that is read"),
        ("items.color = { missing = false }", "(known: item_id, name, brand, tags, price)"),
        ("items.tags = { min = 1 }", "items.tags holds lists of text, which takes allowed, missing: not min"),
        ("items.tags = { allowed = [1] }", "items.tags holds lists of text: allowed must list such values"),
        ("items.price = { allowed = ['1'] }", "items.price holds numbers: allowed must list such values"),
        ("items.price = { earliest = 2020-01-01 }", "items.price holds numbers, which takes "),
        ("interactions.country = { missing = false }", "(known: user_id, item_id, timestamp, weight, event, rating)"),
        ("interactions.timestamp = { min = 5 }", "holds timestamps, which takes earliest, latest, missing: not min"),
        ("interactions.timestamp = { latest = 'soon' }", "column_rules.interactions.timestamp.latest: "),
        (
            "interactions.timestamp = { earliest = 2020-01-02, latest = 2020-01-01 }",
            "column_rules.interactions.timestamp: earliest must not be after latest",
        ),
    ],
    ids=lambda text: text if "=" in text else "",
)
def test_rejects_inconsistent_column_rules(text, message):
    with pytest.raises(ConfigError) as caught:
        column_rules(text)
    assert message in str(caught.value)


def test_column_rules_of_items_require_items():
    with pytest.raises(ConfigError, match=r"column_rules: items can only be checked where data\.items is set"):
        parse(column_rules={"items": {"item_id": {"type": "integer"}}})


# --- paths


def test_paths_of_the_file_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    path = write(tmp_path / "configs", '[data]\ninteractions = "logs/*.csv"\nitems = "../items.csv"\n')
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = load_config(path)
    assert loaded.data.interactions == str(tmp_path / "configs" / "logs" / "*.csv")
    assert Path(loaded.data.items).resolve() == tmp_path / "items.csv"
    assert loaded.workspace == tmp_path / "configs" / "workspace"


OPTIONAL_PATHS = ("items", "labeled_pairs", "feedback", "warm_start", "releases")


@pytest.mark.parametrize(
    ("table", "key"), [*(("data", key) for key in OPTIONAL_PATHS), *(("serve", key) for key in PATHS["serve"])]
)
def test_every_path_is_absolute_or_missing(tmp_path, monkeypatch, table, key):
    def loaded(path, *overrides):
        return getattr(getattr(load_config(path, overrides), table), key)

    (tmp_path / "configs").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    plain = write(tmp_path / "configs", 'data.interactions = "log.csv"\n')
    assert loaded(plain) is None
    assert loaded(plain, f"{table}.{key}=there") == str(tmp_path / "here" / "there")
    named = write(tmp_path / "configs", f'data.interactions = "log.csv"\n{table}.{key} = "there"\n')
    assert loaded(named) == str(tmp_path / "configs" / "there")


@pytest.mark.parametrize("key", ["interactions", *OPTIONAL_PATHS])
def test_urls_are_not_changed(tmp_path, key):
    url = "s3://bucket/some//where/*.csv"
    named = write(tmp_path, f'[data]\n{key} = "{url}"\n' + ("" if key == "interactions" else 'interactions = "x"\n'))
    assert getattr(load_config(named).data, key) == url
    assert getattr(load_config(named, [f"data.{key}={url}?"]).data, key) == f"{url}?"


def test_rejects_a_url_as_workspace(tmp_path):
    named = write(tmp_path, '[data]\ninteractions = "x"\nworkspace = "s3://me:secret@bucket/ws"\n')
    with pytest.raises(ConfigError, match=r"data.workspace: must be a folder of this machine") as caught:
        load_config(named)
    assert "secret" not in str(caught.value)


def test_every_path_setting_is_tested():
    """A key of [data] that is no path would need no anchor; there is none."""
    assert set(PATHS["data"]) == set(DataConfig.model_fields)


def test_absolute_paths_are_not_changed(tmp_path):
    path = write(tmp_path, f'[data]\ninteractions = "{tmp_path.parent}/log.csv"\n')
    assert load_config(path).data.interactions == f"{tmp_path.parent}/log.csv"


def test_paths_of_overrides_are_relative_to_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    path = write(tmp_path, '[data]\ninteractions = "log.csv"\n')
    monkeypatch.chdir(tmp_path / "here")
    loaded = load_config(path, ["data.interactions=other.csv", 'data.workspace="other"'])
    assert loaded.data.interactions == str(tmp_path / "here" / "other.csv")
    assert loaded.data.workspace == str(tmp_path / "here" / "other")


def test_default_tracking_store_is_in_the_workspace(tmp_path):
    path = write(tmp_path, '[data]\ninteractions = "log.csv"\nworkspace = "other"\n')
    assert load_config(path).tracking_uri == f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}"
    assert load_config(path, ["tracking.uri=http://tracker:5000"]).tracking_uri == "http://tracker:5000"


# --- overrides


@pytest.mark.parametrize(
    ("override", "table", "key", "value"),
    [
        ("train.passes=7", "train", "passes", 7),
        ("train.passes = 7", "train", "passes", 7),
        ("train.learning_rate=1e-2", "train", "learning_rate", 0.01),
        ("items.title=name", "items", "title", "name"),
        ('items.title="7"', "items", "title", "7"),
        ("items.separator==", "items", "separator", "="),
        ('items.categorical=["brand", "maker"]', "items", "categorical", ("brand", "maker")),
        ("tower.hidden=[]", "tower", "hidden", ()),
    ],
    ids="{}".format,
)
def test_override_is_parsed_as_toml_or_text(tmp_path, override, table, key, value):
    path = write(tmp_path, '[data]\ninteractions = "log.csv"\n[train]\npasses = 3\n')
    received = getattr(getattr(load_config(path, [override]), table), key)
    assert received == value
    assert type(received) is type(value)


def test_last_override_wins(tmp_path):
    path = write(tmp_path, '[data]\ninteractions = "log.csv"\n[train]\npasses = 3\nseed = 9\n')
    loaded = load_config(path, ["train.passes=4", "train.passes=5"])
    assert (loaded.train.passes, loaded.train.seed) == (5, 9)


@pytest.mark.parametrize("override", ["train.passes", "passes=3", "=3", ".passes=3", "train.=3", ""], ids=repr)
def test_rejects_an_override_of_another_form(tmp_path, override):
    path = write(tmp_path, '[data]\ninteractions = "log.csv"\n')
    with pytest.raises(ConfigError, match=r"table\.key=value") as caught:
        load_config(path, [override])
    assert repr(override) in str(caught.value)


@pytest.mark.parametrize(
    ("override", "named"),
    [("train.passes=many", "train.passes"), ("train.pases=3", "train.passes"), ("nothing.here=3", "nothing")],
)
def test_overrides_are_validated_like_the_file(tmp_path, override, named):
    path = write(tmp_path, '[data]\ninteractions = "log.csv"\n')
    with pytest.raises(ConfigError, match=named):
        load_config(path, [override])


# --- fingerprint


@pytest.mark.parametrize(
    "tables",
    [
        {"items": {"separator": ","}},
        {"prepare": {"window": 3}},
        {"tower": {"dimension": 16}},
        {"train": {"seed": 2}},
        {"similar": {"penalty": 7}},
        {"index": {"n_trees": 7}},
        {"evaluate": {"users": 5}},
        {"candidates": {"negatives": 5}},
        {"resources": {"memory_mb": 5}},
        {"column_rules": {"interactions": {"weight": {"min": 1}}}},
    ],
    ids=lambda tables: next(iter(tables)),
)
def test_fingerprint_depends_on_settings_that_change_a_release(tables):
    assert parse(**tables).fingerprint() != parse().fingerprint()


@pytest.mark.parametrize(
    "tables",
    [
        {"data": {"interactions": "elsewhere.csv", "workspace": "other", "warm_start": "x", "labeled_pairs": "y"}},
        {"data": {**DATA, "releases": "s3://bucket/releases"}},
        {"beam": {"workers": 3}},
        {"tracking": {"experiment": "other"}},
        {"beam": {"profile": "local-threads", "options": {"parallelism": 3}}},
        {"serve": {"port": 1}},
        {"promote": {"tolerance": 0.5}},
        {"export": {"k": 5, "to": "redis://:secret@host"}},
        {"tune": {"trials": 5}},
        {"train": {"seed": 1}},
    ],
    ids=lambda tables: next(iter(tables)),
)
def test_fingerprint_does_not_depend_on_locations_and_resources(tables):
    assert parse_config({"data": DATA, **tables}).fingerprint() == parse().fingerprint()


# --- every table


names = st.text(min_size=1, max_size=8)
counts = st.integers(1, 10**6)
shares = st.floats(0, 1)
below_one = st.floats(0, 1, exclude_max=True)
positive = st.floats(0, 1e6, exclude_min=True)
not_negative = st.floats(0, 1e6)
seeds = st.integers(0, 2**31 - 1)
columns = names.filter(lambda name: name not in {"item_id", "interactions", "available", "title"})
roles = st.lists(columns, unique=True, max_size=8).flatmap(
    lambda found: st.tuples(st.just(found), *[st.integers(0, len(found))] * 3)
)
above_one_half = st.floats(0.5, 1, exclude_min=True, exclude_max=True)
inside = st.floats(0, 1, exclude_min=True, exclude_max=True)
spans = st.tuples(st.floats(-9, 0), st.floats(0, 9, exclude_min=True)).map(lambda ends: Span(low=ends[0], high=ends[1]))
log_spans = st.tuples(st.floats(0.1, 1), st.floats(2, 9)).map(lambda ends: Span(low=ends[0], high=ends[1], log=True))
choices = st.lists(st.booleans() | st.integers() | st.floats(-9, 9) | names, min_size=1, max_size=3)
moments = st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2100, 1, 1), timezones=st.just(dt.UTC))  # noqa: DTZ001
periods = st.tuples(moments, moments, st.booleans()).map(
    lambda of: ColumnRules(earliest=min(of[:2]), latest=max(of[:2]), missing=of[2])
)
amounts = st.tuples(st.floats(-9, 0), st.floats(0, 9), st.sampled_from([None, "integer", "number"])).map(
    lambda of: ColumnRules(min=of[0], max=of[1], type=of[2])
)
choices_of_text = st.lists(names, min_size=1, max_size=3).map(lambda texts: ColumnRules(allowed=texts))


@st.composite
def configs(draw):
    result, *places = draw(roles)
    low, middle, high = sorted(places)
    floor, target = sorted((draw(shares), draw(shares)))

    def filled(**strategies):
        return {key: draw(strategy) for key, strategy in strategies.items()}

    return Config(
        data=DataConfig(
            **filled(
                interactions=names,
                items=st.none() | names,
                labeled_pairs=st.none() | names,
                alike=st.none() | names,
                feedback=st.none() | names,
                warm_start=st.none() | names,
                workspace=names,
                releases=st.none() | names,
            )
        ),
        items=ItemsConfig(
            **filled(title=st.none() | columns, separator=names, available=st.none() | st.just("in stock?")),
            categorical=result[:low],
            multi_categorical=result[low:middle],
            numeric=result[middle:high],
            text=result[high:],
            evidence=draw(st.sampled_from([(), ("read by no model",)])),
        ),
        column_rules=ColumnRulesConfig(
            interactions=draw(
                st.fixed_dictionaries(
                    {}, optional={"timestamp": periods, "weight": amounts, "event": choices_of_text, "rating": amounts}
                )
            ),
            items={},  # those depend on the columns above
        ),
        prepare=PrepareConfig(
            **filled(
                as_of=st.none() | moments,
                window=counts,
                decay=not_negative,
                directed=st.booleans(),
                session_gap_minutes=st.none() | positive,
                half_life_days=st.none() | positive,
                max_user_interactions=st.integers(2, 10**6),
                user_power=shares,
                event_weights=st.dictionaries(names, positive, max_size=3),
                min_rating=st.none() | not_negative,
                max_per_second=counts,
                max_dead_letter_ratio=shares,
            )
        ),
        tower=TowerConfig(
            **filled(
                dimension=st.integers(2, 512),
                distance=st.sampled_from(["cosine", "euclidean", "manhattan"]),
                fusion=st.sampled_from(["sum", "concatenation", "gating"]),
                text_encoder=st.sampled_from(["bag", "convolutional", "recurrent"]),
                min_count=counts,
                hidden=st.lists(counts, max_size=3),
                dropout=below_one,
                id_dropout=below_one,
            )
        ),
        candidates=CandidatesConfig(
            **filled(
                kind=st.sampled_from(["auto", "catalog", "sampled", "in_batch", "mixed"]),
                max_positives=counts,
                negatives=counts,
                popularity_power=st.floats(-1, 1),
                popularity_correction=shares,
                hard_negatives=st.integers(0, 100),
            )
        ),
        train=TrainConfig(
            **filled(
                loss=st.sampled_from(["cross_entropy", "contrastive", "triplet"]),
                temperature=positive,
                margin=positive,
                mining=st.sampled_from(["semi_hard", "hard", "soft_margin"]),
                passes=counts,
                patience=counts,
                history_passes=st.integers(0, 100),
                batch_size=counts,
                learning_rate=positive,
                learning_rates=st.dictionaries(names, not_negative, max_size=3),
                thaw_after=st.integers(0, 100),
                weight_decay=not_negative,
                new_items=st.booleans(),
                anchor_power=shares,
                validation_queries=counts,
                seed=seeds,
            )
        ),
        similar=SimilarConfig(
            **filled(
                enabled=st.booleans(), penalty=positive, learning_rate=positive, temperature=positive, passes=counts
            )
        ),
        index=IndexConfig(
            **filled(
                n_trees=counts,
            ),
            recall_floor=floor,
            recall_target=target,
        ),
        evaluate=EvaluateConfig(
            **filled(
                split=st.sampled_from(["leave_one_out", "global_time"]),
                test_days=positive,
                validation_days=positive,
                users=counts,
            )
        ),
        export=ExportConfig(
            **filled(
                to=names,
                answer=st.sampled_from(["similar", "next"]),
                k=counts,
                min_similarity=st.none() | shares,
                min_interactions=st.integers(0, 10**6),
                where=st.dictionaries(names, st.lists(names | counts, min_size=1, max_size=3), max_size=3),
            )
        ),
        tune=TuneConfig(
            **filled(
                minutes=positive,
                trials=counts,
                ranges=st.dictionaries(names, choices | spans | log_spans, max_size=3),
            )
        ),
        promote=PromoteConfig(
            **filled(
                tolerance=shares,
                stratum_tolerance=shares,
                quality_floor=st.none() | shares,
                overlap_floor=shares,
                latency_ms=positive,
                data_sensitivity=st.sampled_from(["low", "normal", "high"]),
            )
        ),
        notify=NotifyConfig(
            **filled(
                webhook=st.none() | names,
                command=st.lists(names, max_size=3),
                on=st.lists(st.sampled_from(["promoted", "passed", "published", "rejected", "failed"]), max_size=5),
            )
        ),
        tracking=TrackingConfig(
            **filled(
                uri=st.none() | names, experiment=names, model=st.from_regex(r"[a-z][a-z0-9._-]{0,9}", fullmatch=True)
            )
        ),
        beam=BeamConfig(
            **filled(
                profile=st.sampled_from(["local", "local-threads", "portable", "flink", "spark", "dataflow"]),
                workers=counts,
                options=st.dictionaries(names, names | counts | st.booleans() | st.lists(names), max_size=3),
            )
        ),
        resources=ResourcesConfig(**filled(memory_mb=positive)),
        serve=ServeConfig(
            **filled(
                host=names,
                port=st.integers(0, 65535),
                max_k=counts,
                workers=counts,
                folder=st.none() | names,
                poll_seconds=positive,
                keep_seconds=positive,
                challenger=st.sampled_from(["none", "shadow", "canary"]),
                challenger_share=shares,
                keys=st.none() | names,
                rate=st.none() | positive,
                timeout_seconds=positive,
                max_concurrent=counts,
            )
        ),
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(configs(), st.sampled_from(["python", "json"]))
def test_every_table_can_be_dumped_and_parsed(whole, mode):
    """A manifest keeps the config as JSON: reading it back must give the same config and the same run."""
    again = parse_config(whole.model_dump(mode=mode))
    assert again == whole
    assert again.fingerprint() == whole.fingerprint()


@settings(max_examples=1, deadline=None, derandomize=True)
@given(configs())
def test_every_setting_is_tested(whole):
    """A key that is added to a table and not to the strategy would keep its default for ever."""
    for name in Config.model_fields:
        table = getattr(whole, name)
        assert table.model_fields_set == set(type(table).model_fields), name
