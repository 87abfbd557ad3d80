"""The prepare stage against a naive second computation, and its account against bad rows planted by hand."""

import gzip
import json
import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pipelines import prepare
from pipelines.night import Night, main
from recsys import config
from recsys.errors import InputError, RecsysError, StageError

Row = dict[str, Any]


class Result(NamedTuple):
    """What the stage left, and where."""

    manifest: dict[str, Any]
    folder: Path
    catalogue: pl.DataFrame
    sequences: dict[str, list[str]]
    """Item ids by user."""
    pairs: dict[tuple[str, str], tuple[float, float]]
    """Both weights by anchor and positive."""
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


def night(folder: Path, items_file: str | None = None, workspace: str = "work", **tables: Any) -> Night:
    data = {"interactions": str(folder / "log*"), "workspace": str(folder / workspace)}
    if items_file:
        data["items"] = str(folder / items_file)
    return Night.of(config.parse({"data": data, **tables}))


def prepared(job: Night) -> Result:
    manifest = prepare.prepare(job)
    folder = job.run.folder / "prepare"
    catalogue = pl.read_parquet(folder / "catalogue.parquet")
    ids = catalogue["item_id"].to_list()
    sequences = pl.concat([pl.read_parquet(folder / "sequences" / name) for name in manifest["sequences"]])
    pairs = pl.concat([pl.read_parquet(folder / "pairs" / name) for name in manifest["pairs"]])
    return Result(
        manifest,
        folder,
        catalogue,
        {user: [ids[number] for number in numbers] for user, numbers in sequences.iter_rows()},
        {
            (ids[row["anchor"]], ids[positive]): (weight, before)
            for row in pairs.iter_rows(named=True)
            for positive, weight, before in zip(
                row["positives"], row["weight"], row["weight_before_validation"], strict=True
            )
        },
        pl.read_parquet(folder / "dead_letters.parquet"),
    )


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


def naive_known(length: int, held_out: int) -> int:
    """How many of a user's rows training may see, with so many held out."""
    return length - held_out if length >= 3 else length


def naive_pairs(users: dict[str, list[Row]], window: int, decay: float) -> dict[tuple[str, str], tuple[float, float]]:
    """Every two rows of a user, one after the other."""
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for rows in users.values():
        before_test, before_validation = naive_known(len(rows), 1), naive_known(len(rows), 2)
        for i, first in enumerate(rows):
            for j in range(i + 1, min(i + window + 1, len(rows))):
                one, other = first["item_id"], rows[j]["item_id"]
                if one == other:
                    continue
                weight = first["weight"] * rows[j]["weight"] / (j - i) ** decay
                for key in ((one, other), (other, one)):
                    sums[key][0] += weight * (j < before_test)
                    sums[key][1] += weight * (j < before_validation)
    return {key: (weight, before) for key, (weight, before) in sums.items() if weight > 0}


# --- what the stage hands on


@pytest.fixture
def log(tmp_path: Path) -> list[Row]:
    return spread(tmp_path, made_up_log(seed=11))


def test_sequences_are_in_the_order_of_time_and_ties_in_that_of_the_input(tmp_path: Path, log: list[Row]) -> None:
    result = prepared(night(tmp_path))
    expected = naive_sequences(log, {row["item_id"] for row in log})
    assert result.sequences == {user: [row["item_id"] for row in rows] for user, rows in expected.items()}
    assert result.manifest["num_users"] == len(expected)


def test_repeats_of_the_item_before_are_filtered_and_accounted_for(tmp_path: Path, log: list[Row]) -> None:
    account = prepared(night(tmp_path)).manifest["account"]["interactions"]
    kept = sum(len(rows) for rows in naive_sequences(log, {row["item_id"] for row in log}).values())
    assert 0 < kept < len(log)
    assert account == {
        "read": len(log),
        "used": kept,
        "filtered": {"repeats the user's previous item": len(log) - kept},
        "dead_letters": {},
    }


@pytest.mark.parametrize(("window", "decay"), [(1, 1.0), (4, 0.7), (100, 0.0)])
def test_pairs_equal_a_plain_double_loop(tmp_path: Path, log: list[Row], window: int, decay: float) -> None:
    result = prepared(night(tmp_path, prepare={"window": window, "decay": decay}))
    expected = naive_pairs(naive_sequences(log, {row["item_id"] for row in log}), window, decay)
    assert result.pairs == {key: pytest.approx(weights, rel=1e-5) for key, weights in expected.items()}
    assert result.manifest["num_pairs"] == len(expected)
    assert any(before < weight for weight, before in expected.values())


def test_the_catalogue_is_sorted_and_counts_what_training_sees(tmp_path: Path, log: list[Row]) -> None:
    """Test targets are not counted, the whole of a user too short for a test target is."""
    counts = {row["item_id"]: 0 for row in log}
    for rows in naive_sequences(log, set(counts)).values():
        for row in rows[: naive_known(len(rows), 1)]:
            counts[row["item_id"]] += 1
    catalogue = prepared(night(tmp_path)).catalogue
    assert catalogue["item_id"].to_list() == sorted(counts)
    assert dict(catalogue.select("item_id", "interactions").iter_rows()) == counts
    assert catalogue["title"].null_count() == len(counts)


def test_the_catalogue_is_the_items_file_whether_or_not_somebody_touched_them(tmp_path: Path) -> None:
    log = [{"user_id": f"u{n % 3}", "item_id": f"i{n % 4}", "timestamp": n} for n in range(14)]
    write(tmp_path / "log.csv", log)
    items = [{"item_id": name, "name": name.upper(), "tags": "a|b"} for name in ("z9", "i3", "i1", "a0", "i0", "i2")]
    write(tmp_path / "items.csv", items)
    roles = {"title": "name", "multi_categorical": ["tags"]}
    result = prepared(night(tmp_path, "items.csv", items=roles))
    assert result.catalogue["item_id"].to_list() == ["a0", "i0", "i1", "i2", "i3", "z9"]
    assert result.catalogue["title"].to_list() == ["A0", "I0", "I1", "I2", "I3", "Z9"]
    assert result.catalogue["tags"].to_list() == [["a", "b"]] * 6
    untouched = result.catalogue.filter(pl.col("interactions") == 0)["item_id"].to_list()
    assert untouched == ["a0", "z9"]
    assert result.manifest["account"]["items"] == {"read": 6, "used": 6, "filtered": {}, "dead_letters": {}}


def test_interactions_with_the_same_moment_in_other_spellings_are_ties(tmp_path: Path) -> None:
    moments = [0, "1970-01-01", "1970-01-01T00:00:00Z", "1970-01-01T02:00:00+02:00", "0.0"]
    write(
        tmp_path / "log.jsonl",
        [{"user_id": "u", "item_id": f"i{9 - n}", "timestamp": t} for n, t in enumerate(moments)],
    )
    write(tmp_path / "log.csv", [{"user_id": "v", "item_id": "i9", "timestamp": 5}])
    assert prepared(night(tmp_path)).sequences["u"] == ["i9", "i8", "i7", "i6", "i5"]


# --- the account


class Planted(NamedTuple):
    """A row of a file, and what has to become of it."""

    row: Row | str
    reason: str | None = None
    """None: used."""


REPEAT = "repeats the user's previous item"
UNKNOWN = "item_id is not in the catalogue"
RANGE = "timestamp is outside 1970 to 2100 (seconds are expected, not milliseconds)"
NOT_FINITE = "timestamp is not a finite number"


def planted_log() -> dict[str, list[Planted]]:
    """Every kind of bad row, in several files and formats, among good rows that repeat nothing.

    A bad row holds `bad-N` somewhere, so that its dead letter can be told from the others.
    """
    numbers = iter(range(1_000))
    marks = (f"bad-{n}" for n in range(1_000))

    def good() -> Planted:
        n = next(numbers)
        row = {"user_id": f"u{n % 5}", "item_id": f"i{n % 7}", "timestamp": 1_000.0 + n, "weight": 1.0}
        return Planted(row)

    def repeat(of: Planted) -> Planted:
        assert isinstance(of.row, dict)
        return Planted({**of.row, "weight": 9.0}, REPEAT)

    def bad(reason: str, **values: Any) -> Planted:
        row = {"user_id": next(marks), "item_id": "i1", "timestamp": 2_000.0, "weight": 1.0}
        return Planted({**row, **values}, reason)

    def line(reason: str, form: str) -> Planted:
        return Planted(form.format(next(marks)), reason)

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


def planted_items() -> dict[str, list[Planted]]:
    """Seven good items, and every kind of bad one."""
    return {
        "items-1.csv": [
            *(Planted({"item_id": f"i{n}", "year": 1_990 + n}) for n in range(3)),
            Planted({"item_id": "", "year": "bad-0"}, "item_id is missing"),
            Planted({"item_id": "i0", "year": "  77  "}, "item_id was seen before"),
            Planted({"item_id": "bad-1", "year": "soon"}, "year is not a number"),
            Planted("bad-2", "line has 1 fields where the header has 2"),
            Planted({"item_id": "i3", "year": ""}),
        ],
        "items-2.jsonl": [
            Planted({"item_id": "i4", "year": 1_994}),
            Planted("{bad-3", "line is no JSON object"),
            Planted({"item_id": "i2", "year": 77}, "item_id was seen before"),
            Planted({"item_id": "bad-4", "year": float("nan")}, "year is not a finite number"),
            Planted({"item_id": "i6"}),
            Planted({"item_id": "i5", "year": 1_995}),
        ],
    }


def plant(folder: Path, files: dict[str, list[Planted]]) -> None:
    for name, rows in files.items():
        write(folder / name, [planted.row for planted in rows])


def tally(files: dict[str, list[Planted]]) -> dict[str, Any]:
    """The account that these files have to give."""
    reasons = [planted.reason for rows in files.values() for planted in rows]
    by_reason = {reason: reasons.count(reason) for reason in reasons if reason is not None}
    repeats = by_reason.pop(REPEAT, 0)
    return {
        "read": len(reasons),
        "used": reasons.count(None),
        "filtered": {REPEAT: repeats} if repeats else {},
        "dead_letters": by_reason,
    }


@pytest.mark.parametrize("rows_per_unit", [500_000, 4], ids=["one shard", "many shards"])
def test_the_account_adds_up_with_bad_rows_of_every_kind(tmp_path: Path, rows_per_unit: int) -> None:
    log, items = planted_log(), planted_items()
    plant(tmp_path, log | items)
    limits = {"max_dead_letter_ratio": 1.0, "rows_per_unit": rows_per_unit}
    result = prepared(night(tmp_path, "items-*", prepare=limits, items={"numeric": ["year"]}))
    assert result.manifest["account"] == {"interactions": tally(log), "items": tally(items)}
    assert result.catalogue["item_id"].to_list() == [f"i{n}" for n in range(7)]
    assert result.catalogue["year"].to_list() == [1_990, 1_991, 1_992, None, 1_994, 1_995, None]


@pytest.mark.parametrize("rows_per_unit", [500_000, 4], ids=["one shard", "many shards"])
def test_each_dead_letter_says_where_it_comes_from_and_why(tmp_path: Path, rows_per_unit: int) -> None:
    files = planted_log() | planted_items()
    plant(tmp_path, files)
    limits = {"max_dead_letter_ratio": 1.0, "rows_per_unit": rows_per_unit}
    letters = prepared(night(tmp_path, "items-*", prepare=limits, items={"numeric": ["year"]})).letters
    expected = {
        (str(tmp_path / name), number): planted
        for name, rows in files.items()
        for number, planted in enumerate(rows)
        if planted.reason not in (None, REPEAT)
    }
    found = {(letter["source"], letter["row"]): letter for letter in letters.iter_rows(named=True)}
    assert len(found) == letters.height
    assert {place: letter["reason"] for place, letter in found.items()} == {
        place: planted.reason for place, planted in expected.items()
    }
    for place, planted in expected.items():
        content = found[place]["content"]
        if isinstance(planted.row, str):
            assert content == planted.row
        else:
            mark = next((v for v in planted.row.values() if str(v).startswith("bad-")), planted.row["item_id"])
            assert mark in json.loads(content).values()


def test_past_the_ratio_the_stage_fails_and_leaves_nothing(tmp_path: Path) -> None:
    log = planted_log()
    plant(tmp_path, log)
    job = night(tmp_path, prepare={"max_dead_letter_ratio": 0.3})
    with pytest.raises(StageError, match=r"at most 30.00% of the rows of") as caught:
        prepare.prepare(job)
    told = str(caught.value)
    assert all(str(tmp_path / name) in told for name in log)
    # without an items file no item is unknown
    expected = {reason: n for reason, n in tally(log)["dead_letters"].items() if reason != UNKNOWN}
    assert f"Received: {sum(expected.values())} of {tally(log)['read']}" in told
    assert all(f"{n} {reason}" in told for reason, n in expected.items())
    assert list(job.run.folder.iterdir()) == []


@pytest.mark.parametrize(("limit", "refused"), [(0.25, False), (0.2499, True)])
@pytest.mark.parametrize("where", ["interactions", "items"])
def test_the_ratio_itself_is_still_allowed(tmp_path: Path, where: str, limit: float, refused: bool) -> None:
    """One row of four is bad, in one of the two tables."""
    broken = {"interactions": {"log.csv": "u1,a"}, "items": {"items.csv": "b,1"}}[where]
    write(tmp_path / "log.csv", [{"user_id": f"u{n % 2}", "item_id": "ab"[n // 2], "timestamp": n} for n in range(3)])
    write(tmp_path / "items.csv", [{"item_id": "a"}, {"item_id": "b"}, {"item_id": "c"}])
    for name, line in broken.items():
        with (tmp_path / name).open("a") as file:
            file.write(line + "\n")
    job = night(tmp_path, "items.csv", prepare={"max_dead_letter_ratio": limit})
    if refused:
        with pytest.raises(StageError, match="may be unusable"):
            prepare.prepare(job)
    assert job.run.done("prepare") is False
    if not refused:
        account = prepare.prepare(job)["account"][where]
        assert (account["read"], sum(account["dead_letters"].values())) == (4, 1)


# --- independence of how the work is cut and run


VARIANTS = {
    "many shards": {"prepare": {"rows_per_unit": 20}},
    "threads": {"beam": {"profile": "local-threads", "workers": 3}},
    "many shards, threads": {"prepare": {"rows_per_unit": 20}, "beam": {"profile": "local-threads", "workers": 2}},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_results_do_not_depend_on_how_the_work_is_cut_and_run(tmp_path: Path, variant: dict[str, Any]) -> None:
    """Weights are powers of two, so that sums are exact in any order and the frames must be equal."""
    log = spread(tmp_path, made_up_log(seed=5, weights=(0.5, 1.0, 2.0)))
    log[17]["item_id"] = "i99"
    write(tmp_path / "log-9.csv", [{"user_id": "", "item_id": "i1", "timestamp": 1}, "one", log[3]])
    common = {"window": 2, "max_dead_letter_ratio": 1.0}
    one = prepared(night(tmp_path, prepare={**common, "rows_per_unit": 500_000}))
    other_tables = {**variant, "prepare": {**common, **variant.get("prepare", {})}}
    other = prepared(night(tmp_path, workspace="other", **other_tables))

    assert len(one.manifest["pairs"]) == 1
    assert (len(other.manifest["pairs"]) > 1) == ("prepare" in variant)
    unlike = ("sequences", "pairs")  # the names of the parts
    assert {k: v for k, v in one.manifest.items() if k not in unlike} == {
        k: v for k, v in other.manifest.items() if k not in unlike
    }
    assert_frame_equal(one.catalogue, other.catalogue)
    for name, key in (("sequences", "user_id"), ("pairs", "anchor")):
        parts = [
            pl.concat([pl.read_parquet(result.folder / name / part) for part in result.manifest[name]]).sort(key)
            for result in (one, other)
        ]
        assert_frame_equal(*parts, check_exact=True)
    assert_frame_equal(one.letters, other.letters, check_row_order=False)
    assert one.letters.height == 2


@pytest.mark.usefixtures("log")
def test_an_anchor_is_in_one_part_only_and_its_positives_are_sorted(tmp_path: Path) -> None:
    result = prepared(night(tmp_path, prepare={"rows_per_unit": 20}))
    parts = [pl.read_parquet(result.folder / "pairs" / name) for name in result.manifest["pairs"]]
    anchors = [anchor for part in parts for anchor in part["anchor"]]
    assert sum(part.height > 0 for part in parts) > 1
    assert anchors == sorted(set(anchors))
    for positives in pl.concat(parts)["positives"]:
        assert positives.to_list() == sorted(set(positives))


# --- a stage is there as a whole or not at all


@pytest.mark.usefixtures("log")
def test_only_what_the_manifest_names_is_left(tmp_path: Path) -> None:
    job = night(tmp_path, prepare={"rows_per_unit": 50})
    result = prepared(job)
    files = {path.relative_to(result.folder).as_posix() for path in result.folder.rglob("*") if path.is_file()}
    assert files == {
        "_MANIFEST.json",
        "catalogue.parquet",
        "dead_letters.parquet",
        *(f"sequences/{name}" for name in result.manifest["sequences"]),
        *(f"pairs/{name}" for name in result.manifest["pairs"]),
    }
    assert [path.name for path in job.run.folder.iterdir()] == ["prepare"]


@pytest.mark.usefixtures("log")
def test_a_finished_stage_is_not_done_again(tmp_path: Path) -> None:
    job = night(tmp_path)
    prepare.prepare(job)
    manifest = job.run.folder / "prepare" / "_MANIFEST.json"
    manifest.write_text('{"kept": true}')
    assert prepare.prepare(night(tmp_path)) == {"kept": True}


def test_what_a_killed_job_left_behind_is_cleared_away(tmp_path: Path, log: list[Row]) -> None:
    job = night(tmp_path)
    stale = job.run.folder / ".tmp-prepare-dead" / ".work"
    stale.mkdir(parents=True)
    (stale / "check-00000.json").write_text('{"read": 5, "dead": {}}')
    assert prepare.prepare(job)["account"]["interactions"]["read"] == len(log)
    assert [path.name for path in job.run.folder.iterdir()] == ["prepare"]


def test_a_stage_that_fails_can_be_run_again_after_the_input_is_mended(tmp_path: Path) -> None:
    rows = [{"user_id": f"u{n % 3}", "item_id": f"i{n % 4}", "timestamp": n} for n in range(10)]
    write(tmp_path / "log.csv", [*rows, "broken"])
    with pytest.raises(StageError):
        prepare.prepare(night(tmp_path))
    write(tmp_path / "log.csv", rows)
    assert prepared(night(tmp_path)).manifest["account"]["interactions"]["used"] == 10


# --- the job as a program


def test_the_job_runs_by_itself_from_a_config_file(tmp_path: Path, log: list[Row]) -> None:
    (tmp_path / "recsys.toml").write_text('[data]\ninteractions = "log*"\n')
    manifest = prepare.run(["--config", str(tmp_path / "recsys.toml"), "--set", "prepare.window=1"])
    assert manifest["account"]["interactions"]["read"] == len(log)
    expected = naive_pairs(naive_sequences(log, {row["item_id"] for row in log}), 1, 1.0)
    assert manifest["num_pairs"] == len(expected)


def test_as_a_program_it_prints_its_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    main(lambda: {"num_items": 3})
    assert json.loads(capsys.readouterr().out) == {"num_items": 3}


@pytest.mark.parametrize(("error", "code"), [(InputError("no file"), 2), (StageError("too many"), 1)])
def test_as_a_program_an_error_is_one_message_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], error: RecsysError, code: int
) -> None:
    def fail() -> dict[str, Any]:
        raise error

    with pytest.raises(SystemExit) as caught:
        main(fail)
    assert caught.value.code == code
    assert capsys.readouterr() == ("", f"error: {error}\n")


# --- input that is odd but allowed, or not allowed and has to be told so


LOG = [{"user_id": f"u{n % 3}", "item_id": f"i{n % 4}", "timestamp": n} for n in range(20)]
ITEMS = [{"item_id": f"i{n}", "kind": "ab"[n % 2]} for n in range(4)]


@pytest.mark.parametrize("table", ["interactions", "items"])
def test_a_column_that_nobody_asked_for_may_have_any_name(tmp_path: Path, table: str) -> None:
    extra = {"row": 7}
    write(tmp_path / "log.csv", [{**row, **extra} if table == "interactions" else row for row in LOG])
    write(tmp_path / "items.csv", [{**row, **extra} if table == "items" else row for row in ITEMS])
    assert prepared(night(tmp_path, "items.csv")).manifest["account"]["interactions"]["used"] == len(LOG)


def test_a_binary_column_that_nobody_asked_for_does_not_matter(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", [{**row, "hash": b"\xff"} for row in [*LOG, {**LOG[0], "user_id": ""}]])
    account = prepared(night(tmp_path, prepare={"max_dead_letter_ratio": 0.1})).manifest["account"]["interactions"]
    assert (account["used"], account["dead_letters"]) == (len(LOG), {"user_id is missing": 1})


@pytest.mark.parametrize("role", [{"categorical": ["kind"]}, {"title": "kind"}], ids=["categorical", "title"])
def test_lists_where_one_value_is_expected_are_refused(tmp_path: Path, role: dict[str, Any]) -> None:
    write(tmp_path / "log.csv", LOG)
    write(tmp_path / "items.parquet", [{**row, "kind": ["a", "b"]} for row in ITEMS])
    with pytest.raises(InputError, match="kind"):
        prepare.prepare(night(tmp_path, "items.parquet", items=role))


def test_lists_in_one_items_file_and_text_in_another_are_the_same_feature(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", LOG)
    write(tmp_path / "items-1.csv", [{"item_id": "i0", "tags": "a|b"}, {"item_id": "i1", "tags": "c"}])
    write(tmp_path / "items-2.parquet", [{"item_id": "i2", "tags": ["a", "b"]}, {"item_id": "i3", "tags": []}])
    catalogue = prepared(night(tmp_path, "items-*", items={"multi_categorical": ["tags"]})).catalogue
    assert catalogue["tags"].to_list() == [["a", "b"], ["c"], ["a", "b"], []]


def test_a_feature_called_interactions_keeps_its_values_or_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", LOG)
    write(tmp_path / "items.csv", [{**row, "interactions": "many"} for row in ITEMS])
    try:
        catalogue = prepared(night(tmp_path, "items.csv", items={"categorical": ["interactions"]})).catalogue
    except RecsysError:
        return
    assert catalogue["interactions"].to_list() == ["many"] * len(ITEMS)


@pytest.mark.parametrize("weight", [1e300, 1e-300])
def test_pair_weights_are_finite_and_above_0_whatever_the_weights(tmp_path: Path, weight: float) -> None:
    """Such a weight is refused as a dead letter, or counted; it never makes a pair of weight infinity, 0 or NaN."""
    odd = {**LOG[0], "item_id": "odd", "weight": weight}
    write(tmp_path / "log.csv", [odd, *({**row, "weight": 1.0} for row in LOG)])
    result = prepared(night(tmp_path, prepare={"max_dead_letter_ratio": 0.1}))
    assert all(0 < pair < float("inf") for pair, _ in result.pairs.values())
