"""The readers: what is a row comes out whole, what is none comes out beside it with its place."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from pipelines.context import readers, text_files
from pipelines.context.input_units import find_files, plan_units
from pipelines.context.raw_rows import RawRows
from pipelines.context.readers import read_unit
from recsys.errors import InputError

HEADER = "user_id,item_id,timestamp\n"


def write(path: Path, content: str | bytes) -> Path:
    """A file with this content, gzipped where its name says so."""
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read_whole(path: Path | str, rows: int = 1_000_000) -> RawRows:
    """A file that makes one unit, its chunks together."""
    (unit,) = plan_units([str(path)], 1_000_000)
    return together(list(read_unit(unit, rows)))


def together(chunks: list[RawRows]) -> RawRows:
    frames, numbers, broken = zip(*chunks, strict=True)
    return RawRows(pl.concat(frames), pl.concat(numbers), pl.concat(broken))


def broken_rows(raw: RawRows) -> list[tuple[int, str, str]]:
    return list(raw.malformed.select("row", "reason", "content").iter_rows())


# --- finding files


def test_a_glob_finds_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("day-2.csv", "day-10.jsonl", "day-1.parquet", "other.csv"):
        write(tmp_path / name, "x")
    (tmp_path / "day-3.csv").mkdir()
    found = find_files(str(tmp_path / "day-*"), "data.interactions")
    assert [Path(source).name for source in found] == ["day-1.parquet", "day-10.jsonl", "day-2.csv"]


def test_a_recursive_glob_finds_files_in_sub_folders(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    write(tmp_path / "a" / "b" / "deep.csv", "x")
    write(tmp_path / "top.csv", "x")
    found = find_files(str(tmp_path / "**" / "*.csv"), "data.interactions")
    assert [Path(source).relative_to(tmp_path).as_posix() for source in found] == ["a/b/deep.csv", "top.csv"]


def test_a_name_with_brackets_is_also_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "log[1].csv", "x")
    assert find_files(str(path), "data.interactions") == [str(path)]


@pytest.mark.parametrize("name", ["log-*.csv", "log.csv"])
def test_a_pattern_without_files_is_refused_with_its_setting_and_itself(tmp_path: Path, name: str) -> None:
    pattern = str(tmp_path / name)
    with pytest.raises(InputError, match=r"data\.items must be a file, or a glob") as caught:
        find_files(pattern, "data.items")
    assert pattern in str(caught.value)


@pytest.mark.parametrize("name", ["log.xlsx", "log", "log.gz", "log.txt.gz"])
def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "x")
    with pytest.raises(
        InputError, match=r"data.interactions must end in \.parquet, \.csv, \.jsonl, \.ndjson"
    ) as caught:
        find_files(str(path), "data.interactions")
    assert str(path) in str(caught.value)


def test_one_unknown_suffix_among_many_files_is_named(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", "x")
    stray = write(tmp_path / "log.md", "x")
    with pytest.raises(InputError) as caught:
        find_files(str(tmp_path / "log.*"), "data.interactions")
    assert str(stray) in str(caught.value)


def test_suffixes_may_be_in_capitals(tmp_path: Path) -> None:
    path = write(tmp_path / "LOG.CSV", HEADER + "u,i,1\n")
    assert read_whole(find_files(str(path), "data.interactions")[0]).frame.height == 1


# --- planning units


def test_parquet_is_cut_by_row_groups_and_nothing_is_lost_or_repeated(tmp_path: Path) -> None:
    """23 rows in groups of 4: units of 2 groups, the last one shorter."""
    frame = pl.DataFrame({"user_id": [f"u{n}" for n in range(23)]})
    frame.write_parquet(tmp_path / "log.parquet", row_group_size=4)
    units = plan_units([str(tmp_path / "log.parquet")], rows_per_unit=5)
    assert [(unit.row_groups, unit.first_row, unit.rows) for unit in units] == [
        ((0, 1), 0, 8),
        ((2, 3), 8, 8),
        ((4, 5), 16, 7),
    ]
    raws = [raw for unit in units for raw in read_unit(unit, 5)]
    assert [user for raw in raws for user in raw.frame["user_id"]] == frame["user_id"].to_list()
    assert [row for raw in raws for row in raw.row_numbers] == list(range(23))
    assert all(raw.row_numbers.dtype == pl.UInt32 for raw in raws)


def test_units_are_numbered_through_over_files_of_all_formats(tmp_path: Path) -> None:
    pl.DataFrame({"a": range(9)}).write_parquet(tmp_path / "b.parquet", row_group_size=3)
    first = write(tmp_path / "a.csv", "a\n1\n")
    last = write(tmp_path / "c.jsonl.gz", '{"a": 1}\n')
    units = plan_units([str(first), str(tmp_path / "b.parquet"), str(last)], rows_per_unit=3)
    assert [(unit.number, Path(unit.source).name, unit.format) for unit in units] == [
        (0, "a.csv", "csv"),
        (1, "b.parquet", "parquet"),
        (2, "b.parquet", "parquet"),
        (3, "b.parquet", "parquet"),
        (4, "c.jsonl.gz", "jsonl"),
    ]


def test_a_parquet_file_without_rows_is_one_empty_unit_with_its_columns(tmp_path: Path) -> None:
    pl.DataFrame(schema={"user_id": pl.String, "timestamp": pl.Int64}).write_parquet(tmp_path / "log.parquet")
    raw = read_whole(tmp_path / "log.parquet")
    assert (raw.frame.columns, raw.frame.height, len(raw.row_numbers), raw.malformed.height) == (
        ["user_id", "timestamp"],
        0,
        0,
        0,
    )


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl", "log.parquet"])
def test_a_file_of_no_bytes_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"must contain rows\. Received: an empty file") as caught:
        plan_units([str(tmp_path / name)], 1_000)
    assert str(tmp_path / name) in str(caught.value)


def test_text_that_is_called_parquet_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "log.parquet", HEADER + "u,i,1\n" * 50)
    with pytest.raises(InputError, match="must be a parquet file") as caught:
        plan_units([str(path)], 1_000)
    assert str(path) in str(caught.value)


# --- reading Parquet


def test_parquet_keeps_the_types_of_its_columns(tmp_path: Path) -> None:
    frame = pl.DataFrame({"item_id": ["007", None], "year": [1999, None], "genres": [["a", "b"], []]})
    frame.write_parquet(tmp_path / "items.parquet")
    assert read_whole(tmp_path / "items.parquet").frame.equals(frame)


# --- reading CSV


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_csv_columns_stay_text_and_an_empty_field_is_null(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, HEADER + "007,0x1F,1.50\n1e5,NA,\n,null,NaN\n")
    assert read_whole(path).frame.to_dict(as_series=False) == {
        "user_id": ["007", "1e5", None],
        "item_id": ["0x1F", "NA", "null"],
        "timestamp": ["1.50", None, "NaN"],
    }


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_lines_with_too_many_or_too_few_fields_come_out_beside_the_rows(tmp_path: Path, newline: str) -> None:
    lines = ["a,x,1", "b,x", "c,x,3", "d,x,4,5", "e", "f,y,6"]
    path = write(tmp_path / "log.csv", newline.join([HEADER.strip(), *lines, ""]))
    raw = read_whole(path)
    assert raw.frame["user_id"].to_list() == ["a", "c", "f"]
    assert raw.row_numbers.to_list() == [0, 2, 5]
    assert broken_rows(raw) == [
        (1, "line has 2 fields where the header has 3", "b,x"),
        (3, "line has 4 fields where the header has 3", "d,x,4,5"),
        (4, "line has 1 fields where the header has 3", "e"),
    ]


def test_row_numbers_of_broken_lines_hold_far_into_a_file(tmp_path: Path) -> None:
    """Files longer than one block of the reader, broken in unequal steps."""
    places = {1, 17, 40_000, 99_998}
    lines = ["short" if row in places else f"user-{row},item-{row % 7},{row}" for row in range(99_999)]
    raw = read_whole(write(tmp_path / "log.csv", HEADER + "\n".join(lines) + "\n"))
    assert raw.malformed["row"].to_list() == sorted(places)
    assert raw.frame["timestamp"].cast(pl.UInt32).to_list() == raw.row_numbers.to_list()
    assert raw.frame.height == len(lines) - len(places)


def test_a_byte_order_mark_is_no_part_of_the_first_column_name(tmp_path: Path) -> None:
    raw = read_whole(write(tmp_path / "log.csv", b"\xef\xbb\xbf" + (HEADER + "007,i,1\n").encode()))
    assert raw.frame.row(0, named=True) == {"user_id": "007", "item_id": "i", "timestamp": "1"}


def test_quoted_newlines_and_commas_stay_in_their_field_and_count_as_one_row(tmp_path: Path) -> None:
    raw = read_whole(write(tmp_path / "log.csv", HEADER + '"u\n1","a, b",1\nshort\n"u ""2""",c,2\n'))
    assert raw.frame.rows() == [("u\n1", "a, b", "1"), ('u "2"', "c", "2")]
    assert raw.row_numbers.to_list() == [0, 2]
    assert raw.malformed["row"].to_list() == [1]


def test_a_header_without_rows_has_columns_and_no_rows(tmp_path: Path) -> None:
    raw = read_whole(write(tmp_path / "log.csv", HEADER))
    assert (raw.frame.columns, raw.frame.height) == (["user_id", "item_id", "timestamp"], 0)


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("log.csv", HEADER.encode() + b"u,\xe9t\xe9,1\n", "must be a csv file"),
        ("log.csv", b"us\xe9r_id,item_id\nu,i\n", "must be a csv file"),
        ("log.csv", (HEADER + "u,i,1\n").encode("utf-16"), "must be a csv file"),
        ("log.csv.gz", HEADER.encode() + b"u,\xe9t\xe9,1\n", "must be a csv file"),
        ("log.csv", b"user_id,item_id,item_id\nu,i,1\n", "must be a csv file"),
        ("log.csv", ("\n" + HEADER).encode(), "must begin with a line of column names"),
        ("log.csv.gz", b"", "must begin with a line of column names"),
        ("log.jsonl", b'{"user_id": "\xe9t\xe9"}\n', "must be a jsonl file"),
    ],
    ids=[
        "row not UTF-8",
        "header not UTF-8",
        "UTF-16",
        "gzipped row not UTF-8",
        "column twice",
        "no header",
        "nothing gzipped",
        "JSON not UTF-8",
    ],
)
def test_a_text_file_that_cannot_be_read_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes, rule: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(InputError, match=rule) as caught:
        read_whole(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"no gzip at all", gzip.compress((HEADER + "u,i,1\n" * 5_000).encode())[:-20]],
    ids=["no gzip", "cut short"],
)
@pytest.mark.parametrize("name", ["log.csv.gz", "log.jsonl.gz"])
def test_a_damaged_gzip_file_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_whole(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


# --- reading JSON lines


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz", "log.ndjson"])
def test_json_lines_come_out_with_the_union_of_their_keys(tmp_path: Path, name: str) -> None:
    rows = [{"item_id": "007", "year": 1}, {"year": 2, "genres": ["a"]}, {}]
    path = write(tmp_path / name, "".join(json.dumps(row) + "\n" for row in rows))
    assert read_whole(path).frame.to_dict(as_series=False) == {
        "item_id": ["007", None, None],
        "year": [1, 2, None],
        "genres": [None, ["a"], None],
    }


def test_a_column_of_mixed_types_becomes_text(tmp_path: Path) -> None:
    values = [7, "007", None, 1.5, ["a"], True]
    path = write(tmp_path / "log.jsonl", "".join(json.dumps({"item_id": value}) + "\n" for value in values))
    assert read_whole(path).frame["item_id"].to_list() == ["7", "007", None, "1.5", '["a"]', "true"]


def test_broken_json_lines_come_out_beside_the_rows_and_blank_lines_are_none(tmp_path: Path) -> None:
    lines = ['{"user_id": "a"}', "", '{"user_id": ', "  ", "[1, 2]", '"text"', "null", '{"user_id": "b"}', "}"]
    raw = read_whole(write(tmp_path / "log.jsonl", "\n".join(lines)))
    assert raw.frame["user_id"].to_list() == ["a", "b"]
    assert raw.row_numbers.to_list() == [0, 5]
    assert [(row, content) for row, _, content in broken_rows(raw)] == [
        (1, '{"user_id": '),
        (2, "[1, 2]"),
        (3, '"text"'),
        (4, "null"),
        (6, "}"),
    ]
    assert raw.malformed["reason"].unique().to_list() == ["line is no JSON object"]


def test_whole_numbers_and_others_in_a_column_keep_their_own_text(tmp_path: Path) -> None:
    values: list[object] = [7, 1.5, 2**63, {"a": 1}, None]
    path = write(tmp_path / "log.jsonl", "".join(json.dumps({"item_id": value}) + "\n" for value in values))
    assert read_whole(path).frame["item_id"].to_list() == ["7", "1.5", "9223372036854775808", '{"a": 1}', None]


def test_a_list_of_mixed_values_stays_a_list(tmp_path: Path) -> None:
    values = [[1, 1.5], ["a", None], [], None]
    path = write(tmp_path / "log.jsonl", "".join(json.dumps({"genres": value}) + "\n" for value in values))
    assert read_whole(path).frame["genres"].to_list() == [["1", "1.5"], ["a", None], [], None]


def test_rows_without_any_column_are_rows(tmp_path: Path) -> None:
    raw = read_whole(write(tmp_path / "log.jsonl", "{}\n[]\n{}\n"), rows=2)
    assert (raw.frame.height, raw.row_numbers.to_list(), raw.malformed["row"].to_list()) == (2, [0, 2], [1])


def test_a_byte_order_mark_does_not_break_the_first_json_line(tmp_path: Path) -> None:
    raw = read_whole(write(tmp_path / "log.jsonl", b'\xef\xbb\xbf{"user_id": "a"}\n{"user_id": "b"}\n'))
    assert raw.frame["user_id"].to_list() == ["a", "b"]


@pytest.mark.parametrize(
    "line",
    [r'{"user_id": "\ud800"}', '{"user_id": 1' + "0" * 400 + "}", "[" * 100_000],
    ids=["half a surrogate pair", "integer of 401 digits", "brackets 100,000 deep"],
)
def test_a_json_line_that_no_frame_can_hold_breaks_nothing_else(tmp_path: Path, line: str) -> None:
    """It is a broken row, or its value is kept as text; the other rows are there either way."""
    raw = read_whole(write(tmp_path / "log.jsonl", f'{{"user_id": "a"}}\n{line}\n{{"user_id": "b"}}\n'))
    assert {"a", "b"} <= set(raw.frame["user_id"])
    assert raw.frame.height + raw.malformed.height == 3


# --- chunks


def chunked(path: Path | str, rows: int) -> list[RawRows]:
    return [raw for unit in plan_units([str(path)], 1_000_000) for raw in read_unit(unit, rows)]


def made_up(number: int) -> dict[str, str]:
    """A row that tells its place, and whose text is full of what cuts rows and fields."""
    return {"user_id": f"u,{number}", "item_id": 'a "b"\n\nc' if number % 3 else "é\r\n,", "timestamp": str(number)}


def line_of(name: str, number: int) -> str:
    if name.startswith("log.jsonl"):
        return json.dumps(made_up(number))
    return ",".join('"{}"'.format(value.replace('"', '""')) for value in made_up(number).values())


@pytest.mark.parametrize("rows", [1, 7, 100, 1_000_000])
@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.jsonl", "log.jsonl.gz"])
def test_text_in_chunks_is_the_text_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: int
) -> None:
    """Against what was written: each row and each broken line in its place, over blocks of a few rows."""
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1 << 10)
    broken = {0, 1, 40, 41, 42, 43, 299} | set(range(100, 180))
    lines = ["broken" if number in broken else line_of(name, number) for number in range(300)]
    header = [HEADER.strip()] if ".csv" in name else []
    chunks = chunked(write(tmp_path / name, "\n".join([*header, *lines]) + "\n"), rows)
    whole = together(chunks)
    assert whole.frame.to_dicts() == [made_up(number) for number in range(300) if number not in broken]
    assert whole.row_numbers.to_list() == [number for number in range(300) if number not in broken]
    assert [(row, content) for row, _, content in broken_rows(whole)] == [(n, "broken") for n in sorted(broken)]
    for chunk in chunks:
        assert len(chunk.row_numbers) == chunk.frame.height
    if rows < 300:
        assert len(chunks) > 1
        assert max(chunk.frame.height for chunk in chunks) < rows + 60  # a block may hold some more


def test_parquet_in_chunks_is_the_file_row_by_row(tmp_path: Path) -> None:
    """Groups of 4 rows in chunks of about 10, and one group in many chunks."""
    frame = pl.DataFrame({"user_id": [f"u{n}" for n in range(103)], "genres": [["a"] * (n % 3) for n in range(103)]})
    for size, rows in ((4, 10), (103, 10)):
        frame.write_parquet(tmp_path / "log.parquet", row_group_size=size)
        chunks = chunked(tmp_path / "log.parquet", rows)
        assert together(chunks).frame.equals(frame)
        assert together(chunks).row_numbers.to_list() == list(range(103))
        assert {10 <= chunk.frame.height < 20 for chunk in chunks[:-1]} == {True}


def test_a_column_of_the_last_line_is_in_every_chunk_with_its_type(tmp_path: Path) -> None:
    lines = [*(json.dumps({"item_id": number}) for number in range(20)), '{"item_id": "x", "genres": ["a"]}']
    chunks = chunked(write(tmp_path / "items.jsonl", "\n".join(lines)), 3)
    assert {tuple(chunk.frame.schema.items()) for chunk in chunks} == {
        (("item_id", pl.String), ("genres", pl.List(pl.String)))
    }
    assert together(chunks).frame["item_id"].to_list() == [*map(str, range(20)), "x"]
    assert together(chunks).frame["genres"].to_list() == [*[None] * 20, ["a"]]


@pytest.mark.parametrize("content", [HEADER, HEADER + "short\n"], ids=["header", "header and a broken line"])
def test_a_file_without_rows_is_one_chunk_with_its_columns(tmp_path: Path, content: str) -> None:
    (chunk,) = chunked(write(tmp_path / "log.csv", content), 10)
    assert chunk.frame.columns == ["user_id", "item_id", "timestamp"]
    assert chunk.frame.height == 0
    assert chunk.malformed.height == content.count("short")


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.jsonl"])
def test_a_fault_far_into_a_file_is_told_when_it_is_reached(tmp_path: Path, name: str) -> None:
    line = '{{"user_id": "{}"}}\n' if "json" in name else "{},i,1\n"
    content = ("" if "json" in name else HEADER) + "".join(line.format(number) for number in range(150_000))
    path = write(tmp_path / name, content.encode() + b"\xff")
    (unit,) = plan_units([str(path)], 1_000_000)
    with pytest.raises(InputError, match=r"must be a (csv|jsonl) file") as caught:
        list(read_unit(unit, 1_000))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.jsonl.gz", "log.parquet"])
def test_a_large_file_is_never_held_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What Arrow and Python hold at most, beside the size of all rows."""
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1 << 16)  # Arrow reads some dozens of blocks ahead
    count, wide = 20_000, "x" * 1_000
    rows = {"user_id": [f"{number}" for number in range(count)], "item_id": [wide] * count}
    if name.endswith("parquet"):
        pl.DataFrame(rows).write_parquet(tmp_path / name, row_group_size=2_000)
    elif "json" in name:
        write(tmp_path / name, "".join(f'{{"user_id": "{number}", "item_id": "{wide}"}}\n' for number in range(count)))
    else:
        write(tmp_path / name, "user_id,item_id\n" + "".join(f"{number},{wide}\n" for number in range(count)))
    (unit,) = plan_units([str(tmp_path / name)], 1_000_000)
    del rows
    before, held, seen = pa.total_allocated_bytes(), 0, 0
    tracemalloc.start()
    for raw in read_unit(unit, 1_000):
        held = max(held, pa.total_allocated_bytes() - before)
        seen += raw.frame.height
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == count
    assert held + python < count * len(wide) / 2


# --- by URL


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.jsonl", "log.jsonl.gz", "log.parquet"])
def test_a_file_in_a_store_is_read_like_a_file(tmp_path: Path, bucket: Any, name: str) -> None:
    if name.endswith("parquet"):
        pl.DataFrame([made_up(number) for number in range(500)]).write_parquet(tmp_path / name, row_group_size=90)
    else:
        header = [HEADER.strip()] if ".csv" in name else []
        lines = ["broken" if number % 9 == 4 else line_of(name, number) for number in range(500)]
        write(tmp_path / name, "\n".join([*header, *lines]))
    bucket.put(f"in/{name}", (tmp_path / name).read_bytes())
    assert find_files(f"{bucket.url}/in/*", "data.interactions") == [f"{bucket.url}/in/{name}"]
    here, there = (chunked(place, 60) for place in (tmp_path / name, f"{bucket.url}/in/{name}"))
    assert sum(raw.frame.height for raw in here) > 400
    for one, other in zip(here, there, strict=True):
        assert all(a.equals(b) for a, b in zip(one, other, strict=True))
