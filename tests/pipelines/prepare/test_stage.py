"""The prepare stage against a naive second computation, and its account against known invalid rows."""

import gzip
import json
import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
from numpy.testing import assert_array_equal
from polars.testing import assert_frame_equal

from pipelines.context.run_context import RunContext
from pipelines.orchestration.stage_table import STAGES
from pipelines.prepare import phases
from pipelines.prepare import stage as prepare
from recsys.config.loading import parse_config
from recsys.data.splits import held_out_users
from recsys.errors import InputError, RecsysError, StageError
from tests import memory_mb

Row = dict[str, Any]

one_shard = pytest.param(500_000, id="one shard")


def many_shards(rows_per_unit: int) -> Any:
    """Return a slow case; `test_results_do_not_depend_on_units_or_profile` compares everything with one shard."""
    return pytest.param(rows_per_unit, id="many shards", marks=pytest.mark.slow)


class Result(NamedTuple):
    """What the stage left, and where."""

    manifest: dict[str, Any]
    folder: Path
    catalog: pl.DataFrame
    sequences: dict[str, list[str]]
    """Item ids by user."""
    times: dict[str, list[float]]
    """Timestamp of each."""
    pairs: dict[tuple[str, str], tuple[float, float]]
    """Both weights by anchor and positive."""
    labeled: list[tuple[str, str, bool]]
    """Judged pairs, in the order of the input."""
    letters: pl.DataFrame


def write(path: Path, rows: Iterable[Row | str], row_group_size: int = 5) -> Path:
    """Rows in the format that the name asks for; a text among them is a line as it is."""
    rows = list(rows)
    stem = path.name.removesuffix(".gz")
    if stem.endswith(".parquet"):
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(path, row_group_size=row_group_size)
        return path
    if stem.endswith(".csv"):
        columns = list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))
        fields = (row if isinstance(row, str) else ",".join(str(row.get(key, "")) for key in columns) for row in rows)
        lines = [",".join(columns), *fields]
    else:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def context(
    folder: Path,
    items_file: str | None = None,
    workspace: str = "work",
    labeled: str | None = None,
    rows: int = 500_000,
    **tables: Any,
) -> RunContext:
    data = {"interactions": str(folder / "log*"), "workspace": str(folder / workspace)}
    if items_file:
        data["items"] = str(folder / items_file)
    if labeled:
        data["labeled_pairs"] = str(folder / labeled)
    return RunContext.from_config(
        parse_config({"data": data, "resources": {"memory_mb": memory_mb(rows=rows)}, **tables})
    )


def prepared(job: RunContext) -> Result:
    manifest = prepare.prepare(job.config, job.run, job.inputs, job.progress)
    folder = job.run.folder / "prepare"
    catalog = pl.read_parquet(folder / "catalog.parquet")
    ids = catalog["item_id"].to_list()
    sequences = pl.concat([pl.read_parquet(folder / "sequences" / name) for name in manifest["sequences"]])
    pairs = pl.concat([pl.read_parquet(folder / "pairs" / name) for name in manifest["pairs"]])
    return Result(
        manifest,
        folder,
        catalog,
        {user: [ids[number] for number in numbers] for user, numbers, _ in sequences.iter_rows()},
        {user: times for user, _, times in sequences.iter_rows()},
        {
            (ids[row["anchor"]], ids[positive]): (weight, validation_weight)
            for row in pairs.iter_rows(named=True)
            for positive, weight, validation_weight in zip(
                row["positives"], row["weight"], row["validation_weight"], strict=True
            )
        },
        [(ids[a], ids[b], same) for a, b, same in pl.read_parquet(folder / "labeled_pairs.parquet").iter_rows()],
        pl.read_parquet(folder / "dead_letters.parquet"),
    )


def require_rows(result: Result, log: list[Row], left: list[Row], filtered: dict[str, int]) -> None:
    """Require the account, sequences and pairs of a log without dead letters, of which the rules keep some rows."""
    users = naive_sequences(left, {row["item_id"] for row in left})
    num_used = sum(map(len, users.values()))
    assert result.manifest["account"]["interactions"] == {
        "read": len(log),
        "used": num_used,
        "filtered": {**filtered, "repeats the user's previous item": len(left) - num_used},
        "dead_letters": {},
    }
    assert result.sequences == {user: [row["item_id"] for row in rows] for user, rows in users.items()}
    expected = naive_pairs(users, 10, 1.0)
    assert result.pairs == {key: pytest.approx(weights, rel=1e-5) for key, weights in expected.items()}


def made_up_log(seed: int, rows: int = 240, weights: tuple[float, ...] = (0.3, 1.0, 2.5)) -> list[Row]:
    """Users of very unequal lengths, few moments (so many ties), and items that repeat at once."""
    rng = random.Random(seed)  # noqa: S311 - made-up data
    log: list[Row] = []
    for _ in range(rows):
        user, item = f"u{int(rng.paretovariate(0.7)) % 23}", f"i{int(rng.paretovariate(0.5)) % 17:02d}"
        log.append({"user_id": user, "item_id": item, "timestamp": rng.randrange(1_000, 1_040), "weight": 1.0})
        log[-1]["weight"] = rng.choice(weights)
        if rng.random() < 0.2:
            log.append({**log[-1], "weight": rng.choice(weights)})
    return log


def spread(folder: Path, log: list[Row]) -> list[Row]:
    """The log over four files of all formats, in unequal parts whose order is that of their names."""
    cuts = [0, len(log) // 2, len(log) * 2 // 3, len(log) * 5 // 6, len(log)]
    names = ["log-1.parquet", "log-2.csv", "log-3.jsonl.gz", "log-4.csv.gz"]
    for name, start, stop in zip(names, cuts, cuts[1:], strict=False):
        write(folder / name, log[start:stop], row_group_size=7)
    return log


def naive_sequences(log: list[Row], known: set[str]) -> dict[str, list[Row]]:
    """Each user's rows, oldest first, ties as they came, without what repeats the item before it."""
    users: dict[str, list[Row]] = defaultdict(list)
    for row in sorted((row for row in log if row["item_id"] in known), key=lambda row: row["timestamp"]):
        own = users[row["user_id"]]
        if not own or own[-1]["item_id"] != row["item_id"]:
            own.append(row)
    return users


def naive_known(rows: list[Row], until: float | None = None) -> int:
    """How many of a user's rows training may see: without the last one, or those before an instant."""
    if until is not None:
        return sum(row["timestamp"] < until for row in rows)
    return len(rows) - 1 if len(rows) >= 3 else len(rows)


def naive_pairs(
    users: dict[str, list[Row]], window: int, decay: float, cut: tuple[float, float] | None = None, **settings: Any
) -> dict[tuple[str, str], tuple[float, float]]:
    """Every two rows of a user, one after the other, with the settings of `prepare`; `cut`: validation, test."""
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    newest = max(row["timestamp"] for rows in users.values() for row in rows)
    for rows, held_out in zip(users.values(), held_out_users(users).tolist(), strict=True):
        known = [naive_known(rows, cut and cut[1]), 0 if held_out else naive_known(rows, cut and cut[0])]
        own: list[tuple[str, str, int, int, float]] = []
        for i, first in enumerate(rows):
            for j in range(i + 1, min(i + window + 1, len(rows))):
                one, other = first["item_id"], rows[j]["item_id"]
                steps = [b["timestamp"] - a["timestamp"] for a, b in zip(rows[i:j], rows[i + 1 : j + 1], strict=True)]
                if one == other or max(steps) > 60 * settings.get("session_gap_minutes", float("inf")):
                    continue
                weight = first["weight"] * rows[j]["weight"] / (j - i) ** decay
                age = (newest - rows[j]["timestamp"]) / 86_400
                own.append((one, other, i, j, weight * 0.5 ** (age / settings.get("half_life_days", float("inf")))))
        for which, end in enumerate(known):
            begin = end - settings.get("max_user_interactions", end)
            counted = [(one, other, weight) for one, other, i, j, weight in own if begin <= i < j < end]
            share = (sum(weight for *_, weight in counted) or 1.0) ** -settings.get("user_power", 0.0)
            for one, other, weight in counted:
                for key in ((one, other),) if settings.get("directed") else ((one, other), (other, one)):
                    sums[key][which] += weight * share
    return {key: (weight, validation) for key, (weight, validation) in sums.items() if weight or validation}


# --- what the stage hands on


@pytest.fixture
def log(tmp_path: Path) -> list[Row]:
    return spread(tmp_path, made_up_log(seed=11))


def test_sequences_are_ordered_by_time_and_ties_by_input(tmp_path: Path, log: list[Row]) -> None:
    result = prepared(context(tmp_path))
    expected = naive_sequences(log, {row["item_id"] for row in log})
    assert result.sequences == {user: [row["item_id"] for row in rows] for user, rows in expected.items()}
    assert result.manifest["num_users"] == len(expected)


def test_consecutive_repeats_are_filtered_and_accounted_for(tmp_path: Path, log: list[Row]) -> None:
    account = prepared(context(tmp_path)).manifest["account"]["interactions"]
    num_used = sum(len(rows) for rows in naive_sequences(log, {row["item_id"] for row in log}).values())
    assert 0 < num_used < len(log)
    assert account == {
        "read": len(log),
        "used": num_used,
        "filtered": {"repeats the user's previous item": len(log) - num_used},
        "dead_letters": {},
    }


@pytest.mark.parametrize("rows_per_unit", [one_shard, many_shards(30)])
def test_duplicate_rows_are_counted_by_day(tmp_path: Path, rows_per_unit: int) -> None:
    """User, item and time; with another row between the two they are no repeat of the item before."""
    rng = random.Random(0)  # noqa: S311 - made-up data
    rows = [
        {"user_id": f"u{rng.randrange(9)}", "item_id": f"i{rng.randrange(9)}", "timestamp": 86_400 * day + 60 * minute}
        for day in range(4)
        for minute in rng.choices(range(30), k=60)
    ]
    day_2 = [row for row in rows if row["timestamp"] // 86_400 == 2]
    rows += day_2
    write(tmp_path / "log.csv", rows)
    days: dict[str, list[tuple[object, ...]]] = defaultdict(list)
    for row in rows:
        days[f"1970-01-0{row['timestamp'] // 86_400 + 1}"].append(tuple(row.values()))
    expected = {
        day: {"rows": len(actual), "copies": len(actual) - len(set(actual))}
        for day, actual in days.items()
        if len(actual) > len(set(actual))
    }
    assert expected["1970-01-03"]["copies"] >= len(day_2)
    result = prepared(context(tmp_path, rows=rows_per_unit))
    assert result.manifest["copied_days"] == expected


@pytest.mark.parametrize(("window", "decay"), [(1, 1.0), (4, 0.7), (100, 0.0)])
def test_pairs_equal_a_plain_double_loop(tmp_path: Path, log: list[Row], window: int, decay: float) -> None:
    result = prepared(context(tmp_path, prepare={"window": window, "decay": decay}))
    expected = naive_pairs(naive_sequences(log, {row["item_id"] for row in log}), window, decay)
    assert result.pairs == {key: pytest.approx(weights, rel=1e-5) for key, weights in expected.items()}
    assert result.manifest["num_pairs"] == len(expected)
    assert any(before < weight for weight, before in expected.values())


def test_interactions_beyond_the_limit_are_counted_and_form_no_pair(tmp_path: Path) -> None:
    """One user has most rows; in a shard of its own it forms no more pairs than the limit allows."""
    people = [{"user_id": f"u{n % 9}", "item_id": f"i{n % 5}", "timestamp": n} for n in range(90)]
    bot = [{"user_id": "bot", "item_id": f"b{n % 700}", "timestamp": n} for n in range(5_000)]
    write(tmp_path / "log.csv", people + bot)
    result = prepared(context(tmp_path, prepare={"max_user_interactions": 40}, rows=100))
    assert result.manifest["over_max_user_interactions"] == {"users": 1, "interactions": 5_000 - 40}
    assert result.manifest["account"]["interactions"]["used"] == 5_090
    assert not held_out_users(["bot"])[0]
    for which in (0, 1):  # for the test, and for validation; the test target makes no pair
        of_the_bot = {item for pair, w in result.pairs.items() if w[which] for item in pair if item.startswith("b")}
        assert of_the_bot == {f"b{n % 700}" for n in range(4_999 - 40, 4_999)}


def test_positives_of_a_popular_item_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heaviest positives remain, and every item keeps the popular one."""
    log = []
    for n in range(60):  # item n is beside "all" n // 10 + 1 times
        pairs_of_n = [(f"u{n}-{time}", name) for time in range(n // 10 + 1) for name in ("all", f"i{n:02d}")]
        log += [
            {"user_id": user, "item_id": item, "timestamp": location}
            for location, (user, item) in enumerate(pairs_of_n)
        ]
    write(tmp_path / "log.csv", log)
    monkeypatch.setattr(phases, "MAX_ITEM_PAIRS", 20)
    result = prepared(context(tmp_path, rows=50))
    assert {other for item, other in result.pairs if item == "all"} == {f"i{n}" for n in range(40, 60)}
    assert {item for item, other in result.pairs if other == "all"} == {f"i{n:02d}" for n in range(60)}
    assert result.manifest["over_max_item_pairs"] == {"items": 1, "pairs": 40}


def test_timestamps_are_stored_beside_the_items(tmp_path: Path, log: list[Row]) -> None:
    expected = naive_sequences(log, {row["item_id"] for row in log})
    assert prepared(context(tmp_path)).times == {
        user: [row["timestamp"] for row in rows] for user, rows in expected.items()
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "directed": {"directed": True},
    "session gap": {"session_gap_minutes": 0.04},
    "half-life": {"half_life_days": 1e-4},
    "newest of each user": {"max_user_interactions": 4},
    "users count alike": {"user_power": 1.0},
    "users count less unlike": {"user_power": 0.4},
    "all at once": {
        "directed": True,
        "session_gap_minutes": 0.05,
        "half_life_days": 3e-4,
        "max_user_interactions": 6,
        "user_power": 0.7,
    },
}


@pytest.mark.parametrize("rows_per_unit", [one_shard, many_shards(20)])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_pairs_by_every_setting_equal_a_plain_double_loop(
    tmp_path: Path, log: list[Row], settings: dict[str, Any], rows_per_unit: int
) -> None:
    """The newest interaction is one of the whole log, whatever shard a user is in."""
    result = prepared(context(tmp_path, prepare={"window": 3, **settings}, rows=rows_per_unit))
    users = naive_sequences(log, {row["item_id"] for row in log})
    expected = naive_pairs(users, 3, 1.0, **settings)
    assert result.pairs == {key: pytest.approx(weights, rel=1e-4) for key, weights in expected.items()}
    assert expected != naive_pairs(users, 3, 1.0)


@pytest.mark.parametrize("rows_per_unit", [one_shard, many_shards(20)])
@pytest.mark.parametrize("settings", [{}, {"user_power": 0.5, "max_user_interactions": 5}], ids=["plain", "weighed"])
def test_pairs_ignore_interactions_after_a_global_cut(
    tmp_path: Path, log: list[Row], settings: dict[str, Any], rows_per_unit: int
) -> None:
    """The log is of 40 seconds: the last 10 are held out for the test, the 10 before for validation."""
    seconds = 1 / 86_400
    split = {"split": "global_time", "test_days": 10 * seconds, "validation_days": 10 * seconds}
    result = prepared(context(tmp_path, prepare=settings, evaluate=split, rows=rows_per_unit))
    newest = max(row["timestamp"] for row in log)
    cut = (newest - 20, newest - 10)
    assert result.manifest["time_cut"] == [pytest.approx(instant, abs=1e-5) for instant in cut]
    counts = {row["item_id"]: 0 for row in log}
    for rows in naive_sequences(log, set(counts)).values():
        for row in rows:
            counts[row["item_id"]] += row["timestamp"] < cut[1] - 1e-5
    assert dict(result.catalog.select("item_id", "interactions").iter_rows()) == counts
    users = naive_sequences(log, set(counts))
    expected = naive_pairs(users, 10, 1.0, (cut[0] - 1e-5, cut[1] - 1e-5), **settings)
    assert result.pairs == {key: pytest.approx(weights, rel=1e-4) for key, weights in expected.items()}
    assert any(before < weight for weight, before in expected.values())


def test_interactions_after_the_test_cut_change_no_pair(tmp_path: Path) -> None:
    """The same log twice, with other items in its last day: equal pairs and equal counts of interactions."""
    day = 86_400
    rows = [{"user_id": f"u{n % 5}", "item_id": f"i{n * n % 7}", "timestamp": n * day // 10} for n in range(100)]
    split = {"split": "global_time", "test_days": 1.0, "validation_days": 2.0}
    write(tmp_path / "items.csv", [{"item_id": f"i{n}"} for n in range(7)])
    result = []
    for shift in (0, 3):
        moved = [
            {**row, "item_id": f"i{(int(row['item_id'][1:]) + shift) % 7}"} if row["timestamp"] >= 8.9 * day else row
            for row in rows
        ]
        write(tmp_path / "log.csv", moved)
        result.append(prepared(context(tmp_path, "items.csv", evaluate=split)))
    assert result[0].sequences != result[1].sequences
    assert result[0].pairs == result[1].pairs
    assert_frame_equal(result[0].catalog, result[1].catalog)
    followers = [np.load(stage.folder / "followers.npy") for stage in result]
    assert_array_equal(*followers)


@pytest.mark.parametrize("rows_per_unit", [one_shard, many_shards(20)])
def test_events_have_the_configured_weights_and_others_are_filtered(tmp_path: Path, rows_per_unit: int) -> None:
    """Filtered interactions are in no sequence, so their neighbors become adjacent."""
    factors = {"view": 0.5, "buy": 3.0}
    rng = random.Random(4)  # noqa: S311 - made-up data
    log = [{**row, "event": rng.choice(["view", "buy", "scroll", ""])} for row in made_up_log(seed=4)]
    spread(tmp_path, log)
    result = prepared(context(tmp_path, prepare={"event_weights": factors}, rows=rows_per_unit))
    left = [{**row, "weight": row["weight"] * factors[row["event"]]} for row in log if row["event"] in factors]
    require_rows(result, log, left, {"event has no weight in prepare.event_weights": len(log) - len(left)})


def test_events_are_ignored_without_event_weights(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", [{**row, "event": "any"} for row in LOG])
    account = prepared(context(tmp_path)).manifest["account"]["interactions"]
    assert (account["used"], account["filtered"]) == (len(LOG), {})


@pytest.mark.parametrize("rows_per_unit", [one_shard, many_shards(20)])
def test_disliked_items_and_bursts_are_filtered(tmp_path: Path, rows_per_unit: int) -> None:
    """With weights and events, in files of all formats, of which one has no ratings.

    A burst is found among the rows of all units, after those that other rules filter; it makes no neighbors.
    """
    factors, maximum = {"view": 0.5, "buy": 3.0}, 3
    rng = random.Random(5)  # noqa: S311 - made-up data
    log = [{**row, "event": rng.choice(["view", "buy", "buy", "scroll"])} for row in made_up_log(seed=5)]
    second = log[0]["timestamp"]
    for user, moment, size in (("u0", second, 6), ("u1", second, 6), ("u1", second + 50, 9), ("u99", second, 4)):
        for item in range(size):
            row = {"user_id": user, "item_id": f"i{item:02d}", "timestamp": moment, "weight": 2.5, "event": "view"}
            log.insert(rng.randrange(len(log)), row)
    last_file = len(log) * 5 // 6
    for row in log[:last_file]:
        row.update(rng.choice([{}, {"rating": 1}, {"rating": 2}, {"rating": 3.5}, {"rating": 5}]))
    spread(tmp_path, log)
    settings = {"event_weights": factors, "min_rating": 2, "max_per_second": maximum}
    result = prepared(context(tmp_path, prepare=settings, rows=rows_per_unit))

    liked = [row for row in log if row.get("rating", 2) >= 2]
    weighted = [{**row, "weight": row["weight"] * factors[row["event"]]} for row in liked if row["event"] in factors]
    items = defaultdict(set)
    for row in weighted:
        items[row["user_id"], row["timestamp"]].add(row["item_id"])
    left = [row for row in weighted if len(items[row["user_id"], row["timestamp"]]) <= maximum]
    filtered = {
        "rating below prepare.min_rating": len(log) - len(liked),
        "event has no weight in prepare.event_weights": len(liked) - len(weighted),
        "more than prepare.max_per_second items in one second": len(weighted) - len(left),
    }
    require_rows(result, log, left, filtered)


def test_a_burst_of_the_default_size_is_filtered_and_its_items_stay_in_the_catalog(tmp_path: Path) -> None:
    """100 items in a second are used, 101 are not, and 101 in a file of dates are."""

    def second(user: str, size: int, moment: object) -> list[Row]:
        return [{"user_id": user, "item_id": f"{user}-{item}", "timestamp": moment} for item in range(size)]

    kept = [*second("a", 100, "2024-01-02T03:04:05Z"), *second("b", 101, "2024-01-02")]
    write(tmp_path / "log.csv", [*second("c", 101, "2024-01-02T03:04:05.5Z"), *kept])
    result = prepared(context(tmp_path))
    assert result.manifest["account"]["interactions"]["filtered"] == {
        "more than prepare.max_per_second items in one second": 101
    }
    assert {user: len(items) for user, items in result.sequences.items()} == {"a": 100, "b": 101}
    assert result.catalog.height == 100 + 101 + 101


def test_error_names_the_minimum_rating_without_ratings(tmp_path: Path) -> None:
    write(tmp_path / "log-1.csv", LOG)
    write(tmp_path / "log-2.jsonl", LOG)
    message = r"prepare\.min_rating requires the column 'rating' .* none in .*log-1\.csv, .*log-2\.jsonl\. Add"
    with pytest.raises(InputError, match=message):
        STAGES["prepare"](context(tmp_path, prepare={"min_rating": 3.0}))


def test_invalid_ratings_are_dead_letters_and_all_disliked_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", [{**row, "rating": "x" if n < 2 else 4} for n, row in enumerate(LOG)])
    limits = {"min_rating": 3.0, "max_dead_letter_ratio": 0.5}
    account = prepared(context(tmp_path, prepare=limits)).manifest["account"]["interactions"]
    assert account["dead_letters"] == {"rating is not a number": 2}
    assert (account["used"], account["filtered"]) == (len(LOG) - 2, {})
    with pytest.raises(InputError, match=r"18 rows: rating below prepare\.min_rating"):
        prepared(context(tmp_path, prepare={**limits, "min_rating": 4.5}))


# --- pairs that people judged


def test_labeled_pairs_have_item_numbers_in_input_order(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", LOG)
    judged = [("i3", "i1", 1), ("i0", "i2", 0), ("i1", "i3", 1)]
    rows = [{"item_a": a, "item_b": b, "same": same} for a, b, same in judged]
    write(tmp_path / "judged-1.csv", rows[:1])
    write(tmp_path / "judged-2.jsonl.gz", rows[1:2])
    write(tmp_path / "judged-3.parquet", rows[2:])
    result = prepared(context(tmp_path, labeled="judged-*"))
    assert result.labeled == [(a, b, same == 1) for a, b, same in judged]
    assert result.manifest["account"]["labeled_pairs"] == {"read": 3, "used": 3, "filtered": {}, "dead_letters": {}}


def test_missing_labeled_pairs_give_an_empty_file_and_no_account(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", LOG)
    result = prepared(context(tmp_path))
    assert result.labeled == []
    assert "labeled_pairs" not in result.manifest["account"]


@pytest.mark.parametrize("rows_per_unit", [500_000, 2], ids=["one unit", "many units"])
def test_invalid_labeled_pairs_become_dead_letters_and_the_account_adds_up(tmp_path: Path, rows_per_unit: int) -> None:
    write(tmp_path / "log.csv", LOG)
    files = {
        "judged-1.csv": [
            RowCase({"item_a": "i1", "item_b": "i2", "same": 1}),
            RowCase({"item_a": "i1", "item_b": "elsewhere", "same": 1}, UNKNOWN),
            RowCase({"item_a": "i1", "item_b": "i3", "same": "maybe"}, "same is neither 0 nor 1"),
            RowCase("one", "line has 1 fields where the header has 3"),
            RowCase({"item_a": "i2", "item_b": "i2", "same": 1}, "item_a and item_b are the same item"),
            RowCase({"item_a": "i3", "item_b": "i2", "same": 0}),
        ],
        "judged-2.parquet": [
            RowCase({"item_a": None, "item_b": "i2", "same": 1}, "item_a is missing"),
            RowCase({"item_a": "i0", "item_b": "i2", "same": 2}, "same is neither 0 nor 1"),
            RowCase({"item_a": "nowhere", "item_b": "elsewhere", "same": 0}, UNKNOWN),
            RowCase({"item_a": "i0", "item_b": "", "same": 1}, "item_b is missing"),
            RowCase({"item_a": "i0", "item_b": "i1", "same": 1}),
        ],
    }
    plant(tmp_path, files)
    limits = {"max_dead_letter_ratio": 1.0}
    result = prepared(context(tmp_path, labeled="judged-*", prepare=limits, rows=rows_per_unit))
    assert result.manifest["account"]["labeled_pairs"] == tally(files)
    assert result.labeled == [("i1", "i2", True), ("i3", "i2", False), ("i0", "i1", True)]
    expected = {
        (str(tmp_path / name), number, case.reason)
        for name, rows in files.items()
        for number, case in enumerate(rows)
        if case.reason
    }
    assert set(result.letters.select("source", "row", "reason").iter_rows()) == expected
    assert result.letters.height == len(expected)
    unknown = result.letters.filter(pl.col("reason") == UNKNOWN)["content"]
    assert json.loads(unknown[0]) == {"item_a": "i1", "item_b": "elsewhere", "same": True}


def test_too_many_invalid_labeled_pairs_fail_the_stage(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", LOG)
    write(tmp_path / "judged.csv", [{"item_a": f"x{n}", "item_b": "i1", "same": 1} for n in range(3)])
    with pytest.raises(StageError, match=rf"{tmp_path}/judged\.csv .* 3 of 3 \(3 item_id is not in the catalog\)"):
        STAGES["prepare"](context(tmp_path, labeled="judged.csv"))


# --- the catalog


def test_catalog_is_sorted_and_counts_training_interactions(tmp_path: Path, log: list[Row]) -> None:
    """Test targets are not counted, the whole of a user too short for a test target is."""
    counts = {row["item_id"]: 0 for row in log}
    for rows in naive_sequences(log, set(counts)).values():
        for row in rows[: naive_known(rows)]:
            counts[row["item_id"]] += 1
    catalog = prepared(context(tmp_path)).catalog
    assert catalog["item_id"].to_list() == sorted(counts)
    assert dict(catalog.select("item_id", "interactions").iter_rows()) == counts
    assert catalog["title"].null_count() == len(counts)


def test_catalog_contains_items_without_interactions(tmp_path: Path) -> None:
    log = [{"user_id": f"u{n % 3}", "item_id": f"i{n % 4}", "timestamp": n} for n in range(14)]
    write(tmp_path / "log.csv", log)
    items = [{"item_id": name, "name": name.upper(), "tags": "a|b"} for name in ("z9", "i3", "i1", "a0", "i0", "i2")]
    write(tmp_path / "items.csv", items)
    roles = {"title": "name", "multi_categorical": ["tags"]}
    result = prepared(context(tmp_path, "items.csv", items=roles))
    assert result.catalog["item_id"].to_list() == ["a0", "i0", "i1", "i2", "i3", "z9"]
    assert result.catalog["title"].to_list() == ["A0", "I0", "I1", "I2", "I3", "Z9"]
    assert result.catalog["tags"].to_list() == [["a", "b"]] * 6
    untouched = result.catalog.filter(pl.col("interactions") == 0)["item_id"].to_list()
    assert untouched == ["a0", "z9"]
    assert result.manifest["account"]["items"] == {"read": 6, "used": 6, "filtered": {}, "dead_letters": {}}


def test_equal_timestamps_in_different_formats_are_ties(tmp_path: Path) -> None:
    moments = [0, "1970-01-01", "1970-01-01T00:00:00Z", "1970-01-01T02:00:00+02:00", "0.0"]
    write(
        tmp_path / "log.jsonl",
        [{"user_id": "u", "item_id": f"i{9 - n}", "timestamp": t} for n, t in enumerate(moments)],
    )
    write(tmp_path / "log.csv", [{"user_id": "v", "item_id": "i9", "timestamp": 5}])
    assert prepared(context(tmp_path)).sequences["u"] == ["i9", "i8", "i7", "i6", "i5"]


# --- the account


class RowCase(NamedTuple):
    """A row of a file and its expected outcome."""

    row: Row | str
    reason: str | None = None
    """None: used."""


REPEAT = "repeats the user's previous item"
UNKNOWN = "item_id is not in the catalog"
RANGE = "timestamp is outside 1970 to 2100 (seconds are expected, not milliseconds)"
NOT_FINITE = "timestamp is not a finite number"


def planted_log() -> dict[str, list[RowCase]]:
    """Every kind of bad row, in several files and formats, among good rows that repeat nothing.

    A bad row holds `bad-N` somewhere, so that its dead letter can be distinguished.
    """
    numbers = iter(range(1_000))
    marks = (f"bad-{n}" for n in range(1_000))

    def good() -> RowCase:
        n = next(numbers)
        row = {"user_id": f"u{n % 5}", "item_id": f"i{n % 7}", "timestamp": 1_000.0 + n, "weight": 1.0}
        return RowCase(row)

    def repeat(of: RowCase) -> RowCase:
        assert isinstance(of.row, dict)
        return RowCase({**of.row, "weight": 9.0}, REPEAT)

    def bad(reason: str, **values: Any) -> RowCase:
        row = {"user_id": next(marks), "item_id": "i1", "timestamp": 2_000.0, "weight": 1.0}
        return RowCase({**row, **values}, reason)

    def line(reason: str, form: str) -> RowCase:
        return RowCase(form.format(next(marks)), reason)

    first = good()
    return {
        "log-1.csv": [
            first,
            repeat(first),
            bad("user_id is missing", user_id="", item_id=next(marks)),
            line("line has 2 fields where the header has 4", "u1,{}"),
            good(),
            bad("timestamp is missing", timestamp=""),
            bad("timestamp is neither a number of seconds nor ISO 8601", timestamp="yesterday"),
            good(),
            bad("weight is not a number", weight="heavy"),
            good(),
        ],
        "log-2.csv.gz": [
            line("line has 5 fields where the header has 4", "{},i1,1,1,1"),
            good(),
            bad("item_id is missing", item_id=""),
            bad(NOT_FINITE, timestamp="inf"),
            bad("weight is not finite and above 0", weight="nan"),
            bad("timestamp is missing", timestamp="  "),
        ],
        "log-3.jsonl": [
            good(),
            line("line is no JSON object", '{{"user_id": "{}", '),
            bad("weight is not finite and above 0", weight=0),
            bad(NOT_FINITE, timestamp=float("nan")),
            bad(UNKNOWN, item_id="i7"),
            good(),
            good(),
        ],
        "log-4.jsonl.gz": [
            line("line is no JSON object", '["{}"]'),
            good(),
            bad("user_id is missing", user_id=None, item_id=next(marks)),
        ],
        "log-5.parquet": [
            *(good() for _ in range(3)),
            bad("timestamp is missing", timestamp=None),
            *(good() for _ in range(2)),
            bad(RANGE, timestamp=1.7e12),
            good(),
            bad(NOT_FINITE, timestamp=float("nan")),
            bad(NOT_FINITE, timestamp=float("-inf")),
            *(good() for _ in range(4)),
            bad("weight is not finite and above 0", weight=-1.0),
            bad(UNKNOWN, item_id="I1"),
            good(),
            bad("item_id is missing", item_id=None),
        ],
    }


def planted_items() -> dict[str, list[RowCase]]:
    """Seven good items, and every kind of bad one."""
    return {
        "items-1.csv": [
            *(RowCase({"item_id": f"i{n}", "year": 1_990 + n}) for n in range(3)),
            RowCase({"item_id": "", "year": "bad-0"}, "item_id is missing"),
            RowCase({"item_id": "i0", "year": "  77  "}, "item_id is a duplicate"),
            RowCase({"item_id": "bad-1", "year": "soon"}, "year is not a number"),
            RowCase("bad-2", "line has 1 fields where the header has 2"),
            RowCase({"item_id": "i3", "year": ""}),
        ],
        "items-2.jsonl": [
            RowCase({"item_id": "i4", "year": 1_994}),
            RowCase("{bad-3", "line is no JSON object"),
            RowCase({"item_id": "i2", "year": 77}, "item_id is a duplicate"),
            RowCase({"item_id": "bad-4", "year": float("nan")}, "year is not a finite number"),
            RowCase({"item_id": "i6"}),
            RowCase({"item_id": "i5", "year": 1_995}),
        ],
    }


def plant(folder: Path, files: dict[str, list[RowCase]]) -> None:
    for name, rows in files.items():
        write(folder / name, [case.row for case in rows])


def tally(files: dict[str, list[RowCase]]) -> dict[str, Any]:
    """The account that these files have to give."""
    reasons = [case.reason for rows in files.values() for case in rows]
    by_reason = {reason: reasons.count(reason) for reason in reasons if reason is not None}
    repeats = by_reason.pop(REPEAT, 0)
    return {
        "read": len(reasons),
        "used": reasons.count(None),
        "filtered": {REPEAT: repeats} if repeats else {},
        "dead_letters": by_reason,
    }


@pytest.mark.parametrize("rows_per_unit", [one_shard, many_shards(4)])
def test_account_adds_up_with_invalid_rows_of_every_kind(tmp_path: Path, rows_per_unit: int) -> None:
    log, items = planted_log(), planted_items()
    plant(tmp_path, log | items)
    limits = {"max_dead_letter_ratio": 1.0}
    result = prepared(context(tmp_path, "items-*", prepare=limits, rows=rows_per_unit, items={"numeric": ["year"]}))
    assert result.manifest["account"] == {"interactions": tally(log), "items": tally(items)}
    assert result.catalog["item_id"].to_list() == [f"i{n}" for n in range(7)]
    assert result.catalog["year"].to_list() == [1_990, 1_991, 1_992, None, 1_994, 1_995, None]


@pytest.mark.parametrize("rows_per_unit", [one_shard, many_shards(4)])
def test_each_dead_letter_has_its_origin_and_reason(tmp_path: Path, rows_per_unit: int) -> None:
    files = planted_log() | planted_items()
    plant(tmp_path, files)
    limits = {"max_dead_letter_ratio": 1.0}
    letters = prepared(
        context(tmp_path, "items-*", prepare=limits, rows=rows_per_unit, items={"numeric": ["year"]})
    ).letters
    expected = {
        (str(tmp_path / name), number): case
        for name, rows in files.items()
        for number, case in enumerate(rows)
        if case.reason not in (None, REPEAT)
    }
    result = {(letter["source"], letter["row"]): letter for letter in letters.iter_rows(named=True)}
    assert len(result) == letters.height
    assert {location: letter["reason"] for location, letter in result.items()} == {
        location: case.reason for location, case in expected.items()
    }
    for location, case in expected.items():
        content = result[location]["content"]
        if isinstance(case.row, str):
            assert content == case.row
        else:
            mark = next((v for v in case.row.values() if str(v).startswith("bad-")), case.row["item_id"])
            assert mark in json.loads(content).values()


def test_stage_fails_above_the_ratio_and_leaves_no_files(tmp_path: Path) -> None:
    log = planted_log()
    plant(tmp_path, log)
    job = context(tmp_path, prepare={"max_dead_letter_ratio": 0.3})
    with pytest.raises(StageError, match=r"at most 30.00% of the rows of") as caught:
        prepare.prepare(job.config, job.run, job.inputs, job.progress)
    message = str(caught.value)
    assert all(str(tmp_path / name) in message for name in log)
    # without an items file no item is unknown
    expected = {reason: n for reason, n in tally(log)["dead_letters"].items() if reason != UNKNOWN}
    assert f"Received: {sum(expected.values())} of {tally(log)['read']}" in message
    assert all(f"{n} {reason}" in message for reason, n in expected.items())
    assert list(job.run.folder.iterdir()) == []


@pytest.mark.parametrize(("limit", "rejected"), [(0.25, False), (0.2499, True)])
@pytest.mark.parametrize("where", ["interactions", "items"])
def test_ratio_equal_to_the_limit_is_allowed(tmp_path: Path, where: str, limit: float, rejected: bool) -> None:
    """One row of four is bad, in one of the two tables."""
    broken = {"interactions": {"log.csv": "u1,a"}, "items": {"items.csv": "b,1"}}[where]
    write(tmp_path / "log.csv", [{"user_id": f"u{n % 2}", "item_id": "ab"[n // 2], "timestamp": n} for n in range(3)])
    write(tmp_path / "items.csv", [{"item_id": "a"}, {"item_id": "b"}, {"item_id": "c"}])
    for name, line in broken.items():
        with (tmp_path / name).open("a") as file:
            file.write(line + "\n")
    job = context(tmp_path, "items.csv", prepare={"max_dead_letter_ratio": limit})
    if rejected:
        with pytest.raises(StageError, match="may be unusable"):
            prepare.prepare(job.config, job.run, job.inputs, job.progress)
    assert job.run.done("prepare") is False
    if not rejected:
        account = prepare.prepare(job.config, job.run, job.inputs, job.progress)["account"][where]
        assert (account["read"], sum(account["dead_letters"].values())) == (4, 1)


# --- independence of how the work is cut and run


VARIANTS = {
    "many shards": {"rows": 20},
    "threads": {"beam": {"profile": "local-threads", "workers": 3}},
    "many shards, threads": {"rows": 20, "beam": {"profile": "local-threads", "workers": 2}},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_results_do_not_depend_on_units_or_profile(tmp_path: Path, variant: dict[str, Any]) -> None:
    """Weights are powers of two, so that sums are exact in any order and the frames must be equal."""
    log = spread(tmp_path, made_up_log(seed=5, weights=(0.5, 1.0, 2.0)))
    log[17]["item_id"] = "i99"
    write(tmp_path / "log-9.csv", [{"user_id": "", "item_id": "i1", "timestamp": 1}, "one", log[3]])
    common = {"window": 2, "max_dead_letter_ratio": 1.0}
    one = prepared(context(tmp_path, prepare=common, rows=500_000))
    other_tables = {**variant, "prepare": {**common, **variant.get("prepare", {})}}
    other = prepared(context(tmp_path, workspace="other", **other_tables))

    assert len(one.manifest["pairs"]) == 1
    assert (len(other.manifest["pairs"]) > 1) == ("rows" in variant)
    unlike = ("sequences", "pairs", "similar_pairs")  # the names of the parts
    assert {k: v for k, v in one.manifest.items() if k not in unlike} == {
        k: v for k, v in other.manifest.items() if k not in unlike
    }
    assert_frame_equal(one.catalog, other.catalog)
    followers = [(result.folder / "followers.npy").read_bytes() for result in (one, other)]
    assert followers[0] == followers[1]
    assert len(one.manifest["similar_pairs"]) == 1
    for name, key in (("sequences", "user_id"), ("pairs", "anchor"), ("similar_pairs", "anchor")):
        parts = [
            pl.concat([pl.read_parquet(result.folder / name / part) for part in result.manifest[name]]).sort(key)
            for result in (one, other)
        ]
        assert_frame_equal(*parts, check_exact=True)
    assert_frame_equal(one.letters, other.letters, check_row_order=False)
    assert one.letters.height == 2


@pytest.mark.usefixtures("log")
def test_each_anchor_is_in_one_part_and_its_positives_are_sorted(tmp_path: Path) -> None:
    result = prepared(context(tmp_path, rows=20))
    parts = [pl.read_parquet(result.folder / "pairs" / name) for name in result.manifest["pairs"]]
    anchors = [anchor for part in parts for anchor in part["anchor"]]
    assert sum(part.height > 0 for part in parts) > 1
    assert anchors == sorted(set(anchors))
    for positives in pl.concat(parts)["positives"]:
        assert positives.to_list() == sorted(set(positives))


# --- a stage is there as a whole or not at all


@pytest.mark.usefixtures("log")
def test_stage_contains_only_files_of_the_manifest(tmp_path: Path) -> None:
    job = context(tmp_path, rows=50)
    result = prepared(job)
    files = {path.relative_to(result.folder).as_posix() for path in result.folder.rglob("*") if path.is_file()}
    assert files == {
        "_MANIFEST.json",
        "item_users.npy",
        "followers.npy",
        "catalog.parquet",
        "data_report.html",
        "data_report.json",
        "dead_letters.parquet",
        "labeled_pairs.parquet",
        *(f"sequences/{name}" for name in result.manifest["sequences"]),
        *(f"pairs/{name}" for name in result.manifest["pairs"]),
        *(f"similar_pairs/{name}" for name in result.manifest["similar_pairs"]),
    }
    assert [path.name for path in job.run.folder.iterdir()] == ["prepare"]


@pytest.mark.usefixtures("log")
def test_finished_stage_is_not_repeated(tmp_path: Path) -> None:
    job = context(tmp_path)
    prepare.prepare(job.config, job.run, job.inputs, job.progress)
    manifest = job.run.folder / "prepare" / "_MANIFEST.json"
    manifest.write_text('{"kept": true}')
    assert STAGES["prepare"](context(tmp_path)) == {"kept": True}


def test_files_of_a_killed_job_are_removed(tmp_path: Path, log: list[Row]) -> None:
    job = context(tmp_path)
    stale = job.run.folder / ".tmp-prepare.dead" / ".work"
    stale.mkdir(parents=True)
    (stale / "interactions-00000.json").write_text('{"read": 5, "dead": {}}')
    assert prepare.prepare(job.config, job.run, job.inputs, job.progress)["account"]["interactions"]["read"] == len(log)
    assert [path.name for path in job.run.folder.iterdir()] == ["prepare"]


def test_failed_stage_runs_after_the_input_is_corrected(tmp_path: Path) -> None:
    rows = [{"user_id": f"u{n % 3}", "item_id": f"i{n % 4}", "timestamp": n} for n in range(10)]
    write(tmp_path / "log.csv", [*rows, "broken"])
    with pytest.raises(StageError):
        STAGES["prepare"](context(tmp_path))
    write(tmp_path / "log.csv", rows)
    assert prepared(context(tmp_path)).manifest["account"]["interactions"]["used"] == 10


# --- the job as a program


@pytest.mark.beam
def test_stage_runs_from_a_config_file(tmp_path: Path, log: list[Row], program: Any) -> None:
    (tmp_path / "recsys.toml").write_text('[data]\ninteractions = "log*"\n')
    outcome = program("prepare", "--config", tmp_path / "recsys.toml", "--set", "prepare.window=1", "--json")
    manifest = json.loads(outcome.out)
    assert manifest["account"]["interactions"]["read"] == len(log)
    expected = naive_pairs(naive_sequences(log, {row["item_id"] for row in log}), 1, 1.0)
    assert manifest["num_pairs"] == len(expected)


# --- input that is odd but allowed, or not allowed and must be rejected


LOG = [{"user_id": f"u{n % 3}", "item_id": f"i{n % 4}", "timestamp": n} for n in range(20)]
ITEMS = [{"item_id": f"i{n}", "kind": "ab"[n % 2]} for n in range(4)]


@pytest.mark.parametrize("table", ["interactions", "items"])
def test_unused_column_may_have_any_name(tmp_path: Path, table: str) -> None:
    extra = {"row": 7}
    write(tmp_path / "log.csv", [{**row, **extra} if table == "interactions" else row for row in LOG])
    write(tmp_path / "items.csv", [{**row, **extra} if table == "items" else row for row in ITEMS])
    assert prepared(context(tmp_path, "items.csv")).manifest["account"]["interactions"]["used"] == len(LOG)


def test_unused_binary_column_is_ignored(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", [{**row, "hash": b"\xff"} for row in [*LOG, {**LOG[0], "user_id": ""}]])
    account = prepared(context(tmp_path, prepare={"max_dead_letter_ratio": 0.1})).manifest["account"]["interactions"]
    assert (account["used"], account["dead_letters"]) == (len(LOG), {"user_id is missing": 1})


@pytest.mark.parametrize("role", [{"categorical": ["kind"]}, {"title": "kind"}], ids=["categorical", "title"])
def test_rejects_lists_in_columns_of_single_values(tmp_path: Path, role: dict[str, Any]) -> None:
    write(tmp_path / "log.csv", LOG)
    write(tmp_path / "items.parquet", [{**row, "kind": ["a", "b"]} for row in ITEMS])
    with pytest.raises(InputError, match="kind"):
        STAGES["prepare"](context(tmp_path, "items.parquet", items=role))


def test_lists_and_separated_text_give_the_same_feature(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", LOG)
    write(tmp_path / "items-1.csv", [{"item_id": "i0", "tags": "a|b"}, {"item_id": "i1", "tags": "c"}])
    write(tmp_path / "items-2.parquet", [{"item_id": "i2", "tags": ["a", "b"]}, {"item_id": "i3", "tags": []}])
    catalog = prepared(context(tmp_path, "items-*", items={"multi_categorical": ["tags"]})).catalog
    assert catalog["tags"].to_list() == [["a", "b"], ["c"], ["a", "b"], []]


def test_rejects_a_feature_named_interactions(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", LOG)
    write(tmp_path / "items.csv", [{**row, "interactions": "many"} for row in ITEMS])
    with pytest.raises(RecsysError, match="no feature may be called interactions"):
        context(tmp_path, "items.csv", items={"categorical": ["interactions"]})


@pytest.mark.parametrize("weight", [1e300, 1e-300])
def test_pair_weights_are_finite_and_above_0_whatever_the_weights(tmp_path: Path, weight: float) -> None:
    """Such a weight is rejected as a dead letter, or counted; it never makes a pair of weight infinity, 0 or NaN."""
    odd = {**LOG[0], "item_id": "odd", "weight": weight}
    write(tmp_path / "log.csv", [odd, *({**row, "weight": 1.0} for row in LOG)])
    result = prepared(context(tmp_path, prepare={"max_dead_letter_ratio": 0.1}))
    assert all(0 < pair < float("inf") for pair, _ in result.pairs.values())


def test_error_names_the_rule_if_all_events_are_filtered(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", [{**row, "event": "view"} for row in LOG])
    for items in (None, "items.csv"):
        write(tmp_path / "items.csv", ITEMS)
        with pytest.raises(InputError, match=r"20 rows: event has no weight in prepare\.event_weights"):
            STAGES["prepare"](context(tmp_path, items, prepare={"event_weights": {"buy": 1.0}}))


@pytest.mark.parametrize(("test", "validation"), [(400.0, 1.0), (1.0, 400.0)])
def test_error_names_the_windows_and_the_length_of_the_log(tmp_path: Path, test: float, validation: float) -> None:
    write(tmp_path / "log.csv", [{**row, "timestamp": row["timestamp"] * 86_400} for row in LOG])
    split = {"split": "global_time", "test_days": test, "validation_days": validation}
    with pytest.raises(
        InputError, match=r"evaluate\.validation_days and evaluate\.test_days .* of 19\.0 days"
    ) as caught:
        STAGES["prepare"](context(tmp_path, evaluate=split))
    assert f"{validation:g} and {test:g} days" in str(caught.value)
