"""Readers of input files: rows with their numbers, and malformed rows with their numbers and reasons."""

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
    """Write a file; compress it if its suffix is `.gz`."""
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read_file(path: Path | str, rows: int = 1_000_000) -> RawRows:
    """Return all rows of a file that is a single unit."""
    (unit,) = plan_units([str(path)], 1_000_000)
    return concatenate(list(read_unit(unit, rows)))


def concatenate(chunks: list[RawRows]) -> RawRows:
    frames, row_numbers, malformed = zip(*chunks, strict=True)
    return RawRows(pl.concat(frames), pl.concat(row_numbers), pl.concat(malformed))


def malformed_rows(raw: RawRows) -> list[tuple[int, str, str]]:
    return list(raw.malformed.select("row", "reason", "content").iter_rows())


# --- finding files


def test_glob_returns_files_sorted_by_name(tmp_path: Path) -> None:
    for name in ("day-2.csv", "day-10.jsonl", "day-1.parquet", "other.csv"):
        write(tmp_path / name, "x")
    (tmp_path / "day-3.csv").mkdir()
    sources = find_files(str(tmp_path / "day-*"), "data.interactions")
    assert [Path(source).name for source in sources] == ["day-1.parquet", "day-10.jsonl", "day-2.csv"]


def test_recursive_glob_returns_files_of_subfolders(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    write(tmp_path / "a" / "b" / "deep.csv", "x")
    write(tmp_path / "top.csv", "x")
    sources = find_files(str(tmp_path / "**" / "*.csv"), "data.interactions")
    assert [Path(source).relative_to(tmp_path).as_posix() for source in sources] == ["a/b/deep.csv", "top.csv"]


def test_file_name_may_contain_brackets(tmp_path: Path) -> None:
    path = write(tmp_path / "log[1].csv", "x")
    assert find_files(str(path), "data.interactions") == [str(path)]


@pytest.mark.parametrize("name", ["log-*.csv", "log.csv"])
def test_pattern_without_files_is_rejected_with_its_setting(tmp_path: Path, name: str) -> None:
    pattern = str(tmp_path / name)
    with pytest.raises(InputError, match=r"data\.items must be a file, or a glob") as error:
        find_files(pattern, "data.items")
    assert pattern in str(error.value)


@pytest.mark.parametrize("name", ["log.xlsx", "log", "log.gz", "log.txt.gz"])
def test_unknown_suffix_is_rejected_with_the_list_of_suffixes(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "x")
    with pytest.raises(InputError, match=r"data.interactions must end in \.parquet, \.csv, \.jsonl, \.ndjson") as error:
        find_files(str(path), "data.interactions")
    assert str(path) in str(error.value)


def test_glob_that_matches_an_unknown_suffix_is_rejected(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", "x")
    markdown = write(tmp_path / "log.md", "x")
    with pytest.raises(InputError) as error:
        find_files(str(tmp_path / "log.*"), "data.interactions")
    assert str(markdown) in str(error.value)


def test_suffix_may_be_upper_case(tmp_path: Path) -> None:
    path = write(tmp_path / "LOG.CSV", HEADER + "u,i,1\n")
    assert read_file(find_files(str(path), "data.interactions")[0]).frame.height == 1


# --- planning units


def test_parquet_units_are_row_groups_and_cover_every_row_once(tmp_path: Path) -> None:
    """23 rows in groups of 4 make units of 2 groups; the last unit is shorter."""
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


def test_unit_numbers_continue_across_files_of_all_formats(tmp_path: Path) -> None:
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


def test_parquet_file_without_rows_is_one_unit_with_its_columns(tmp_path: Path) -> None:
    pl.DataFrame(schema={"user_id": pl.String, "timestamp": pl.Int64}).write_parquet(tmp_path / "log.parquet")
    raw = read_file(tmp_path / "log.parquet")
    assert (raw.frame.columns, raw.frame.height, len(raw.row_numbers), raw.malformed.height) == (
        ["user_id", "timestamp"],
        0,
        0,
        0,
    )


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl", "log.parquet"])
def test_empty_file_is_rejected_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"must contain rows\. Received: an empty file") as error:
        plan_units([str(tmp_path / name)], 1_000)
    assert str(tmp_path / name) in str(error.value)


def test_text_file_with_the_suffix_parquet_is_rejected_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "log.parquet", HEADER + "u,i,1\n" * 50)
    with pytest.raises(InputError, match="must be a parquet file") as error:
        plan_units([str(path)], 1_000)
    assert str(path) in str(error.value)


# --- reading Parquet


def test_parquet_columns_have_their_own_types(tmp_path: Path) -> None:
    frame = pl.DataFrame({"item_id": ["007", None], "year": [1999, None], "genres": [["a", "b"], []]})
    frame.write_parquet(tmp_path / "items.parquet")
    assert read_file(tmp_path / "items.parquet").frame.equals(frame)


# --- reading CSV


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_csv_columns_are_text_and_empty_fields_are_null(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, HEADER + "007,0x1F,1.50\n1e5,NA,\n,null,NaN\n")
    assert read_file(path).frame.to_dict(as_series=False) == {
        "user_id": ["007", "1e5", None],
        "item_id": ["0x1F", "NA", "null"],
        "timestamp": ["1.50", None, "NaN"],
    }


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_lines_with_a_wrong_number_of_fields_are_malformed(tmp_path: Path, newline: str) -> None:
    lines = ["a,x,1", "b,x", "c,x,3", "d,x,4,5", "e", "f,y,6"]
    path = write(tmp_path / "log.csv", newline.join([HEADER.strip(), *lines, ""]))
    raw = read_file(path)
    assert raw.frame["user_id"].to_list() == ["a", "c", "f"]
    assert raw.row_numbers.to_list() == [0, 2, 5]
    assert malformed_rows(raw) == [
        (1, "line has 2 fields where the header has 3", "b,x"),
        (3, "line has 4 fields where the header has 3", "d,x,4,5"),
        (4, "line has 1 fields where the header has 3", "e"),
    ]


def test_row_numbers_of_malformed_lines_are_correct_in_long_files(tmp_path: Path) -> None:
    """The file is longer than a block of the reader, and the distances between malformed lines differ."""
    malformed = {1, 17, 40_000, 99_998}
    lines = ["short" if row in malformed else f"user-{row},item-{row % 7},{row}" for row in range(99_999)]
    raw = read_file(write(tmp_path / "log.csv", HEADER + "\n".join(lines) + "\n"))
    assert raw.malformed["row"].to_list() == sorted(malformed)
    assert raw.frame["timestamp"].cast(pl.UInt32).to_list() == raw.row_numbers.to_list()
    assert raw.frame.height == len(lines) - len(malformed)


def test_byte_order_mark_is_not_part_of_the_first_column_name(tmp_path: Path) -> None:
    raw = read_file(write(tmp_path / "log.csv", b"\xef\xbb\xbf" + (HEADER + "007,i,1\n").encode()))
    assert raw.frame.row(0, named=True) == {"user_id": "007", "item_id": "i", "timestamp": "1"}


def test_quoted_newlines_and_commas_belong_to_one_field(tmp_path: Path) -> None:
    raw = read_file(write(tmp_path / "log.csv", HEADER + '"u\n1","a, b",1\nshort\n"u ""2""",c,2\n'))
    assert raw.frame.rows() == [("u\n1", "a, b", "1"), ('u "2"', "c", "2")]
    assert raw.row_numbers.to_list() == [0, 2]
    assert raw.malformed["row"].to_list() == [1]


def test_csv_header_without_rows_gives_columns_and_no_rows(tmp_path: Path) -> None:
    raw = read_file(write(tmp_path / "log.csv", HEADER))
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
        "duplicate column",
        "no header",
        "empty gzip file",
        "JSON not UTF-8",
    ],
)
def test_unreadable_text_file_is_rejected_by_name(tmp_path: Path, name: str, content: bytes, rule: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(InputError, match=rule) as error:
        read_file(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"no gzip at all", gzip.compress((HEADER + "u,i,1\n" * 5_000).encode())[:-20]],
    ids=["not gzip", "truncated"],
)
@pytest.mark.parametrize("name", ["log.csv.gz", "log.jsonl.gz"])
def test_damaged_gzip_file_is_rejected_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read_file(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


# --- reading JSON lines


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz", "log.ndjson"])
def test_json_lines_have_the_union_of_their_keys_as_columns(tmp_path: Path, name: str) -> None:
    rows = [{"item_id": "007", "year": 1}, {"year": 2, "genres": ["a"]}, {}]
    path = write(tmp_path / name, "".join(json.dumps(row) + "\n" for row in rows))
    assert read_file(path).frame.to_dict(as_series=False) == {
        "item_id": ["007", None, None],
        "year": [1, 2, None],
        "genres": [None, ["a"], None],
    }


def test_json_column_of_mixed_types_becomes_text(tmp_path: Path) -> None:
    values = [7, "007", None, 1.5, ["a"], True]
    path = write(tmp_path / "log.jsonl", "".join(json.dumps({"item_id": value}) + "\n" for value in values))
    assert read_file(path).frame["item_id"].to_list() == ["7", "007", None, "1.5", '["a"]', "true"]


def test_invalid_json_lines_are_malformed_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    lines = ['{"user_id": "a"}', "", '{"user_id": ', "  ", "[1, 2]", '"text"', "null", '{"user_id": "b"}', "}"]
    raw = read_file(write(tmp_path / "log.jsonl", "\n".join(lines)))
    assert raw.frame["user_id"].to_list() == ["a", "b"]
    assert raw.row_numbers.to_list() == [0, 5]
    assert [(row, content) for row, _, content in malformed_rows(raw)] == [
        (1, '{"user_id": '),
        (2, "[1, 2]"),
        (3, '"text"'),
        (4, "null"),
        (6, "}"),
    ]
    assert raw.malformed["reason"].unique().to_list() == ["line is no JSON object"]


def test_numbers_in_a_column_of_mixed_types_keep_their_spelling(tmp_path: Path) -> None:
    values: list[object] = [7, 1.5, 2**63, {"a": 1}, None]
    path = write(tmp_path / "log.jsonl", "".join(json.dumps({"item_id": value}) + "\n" for value in values))
    assert read_file(path).frame["item_id"].to_list() == ["7", "1.5", "9223372036854775808", '{"a": 1}', None]


def test_list_of_mixed_values_becomes_a_list_of_text(tmp_path: Path) -> None:
    values = [[1, 1.5], ["a", None], [], None]
    path = write(tmp_path / "log.jsonl", "".join(json.dumps({"genres": value}) + "\n" for value in values))
    assert read_file(path).frame["genres"].to_list() == [["1", "1.5"], ["a", None], [], None]


def test_empty_json_objects_are_rows(tmp_path: Path) -> None:
    raw = read_file(write(tmp_path / "log.jsonl", "{}\n[]\n{}\n"), rows=2)
    assert (raw.frame.height, raw.row_numbers.to_list(), raw.malformed["row"].to_list()) == (2, [0, 2], [1])


def test_byte_order_mark_is_not_part_of_the_first_json_line(tmp_path: Path) -> None:
    raw = read_file(write(tmp_path / "log.jsonl", b'\xef\xbb\xbf{"user_id": "a"}\n{"user_id": "b"}\n'))
    assert raw.frame["user_id"].to_list() == ["a", "b"]


@pytest.mark.parametrize(
    "line",
    [r'{"user_id": "\ud800"}', '{"user_id": 1' + "0" * 400 + "}", "[" * 100_000],
    ids=["half of a surrogate pair", "integer with 401 digits", "100,000 nested brackets"],
)
def test_json_line_that_polars_cannot_represent_does_not_affect_other_rows(tmp_path: Path, line: str) -> None:
    """It becomes a malformed row or text."""
    raw = read_file(write(tmp_path / "log.jsonl", f'{{"user_id": "a"}}\n{line}\n{{"user_id": "b"}}\n'))
    assert {"a", "b"} <= set(raw.frame["user_id"])
    assert raw.frame.height + raw.malformed.height == 3


# --- chunks


def read_chunks(path: Path | str, rows: int) -> list[RawRows]:
    return [raw for unit in plan_units([str(path)], 1_000_000) for raw in read_unit(unit, rows)]


def make_row(number: int) -> dict[str, str]:
    """Return a row that contains its number, separators, quotes and newlines."""
    return {"user_id": f"u,{number}", "item_id": 'a "b"\n\nc' if number % 3 else "é\r\n,", "timestamp": str(number)}


def line_of(name: str, number: int) -> str:
    if name.startswith("log.jsonl"):
        return json.dumps(make_row(number))
    return ",".join('"{}"'.format(value.replace('"', '""')) for value in make_row(number).values())


@pytest.mark.parametrize("rows", [1, 7, 100, 1_000_000])
@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.jsonl", "log.jsonl.gz"])
def test_chunks_of_a_text_file_contain_its_rows_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: int
) -> None:
    """Blocks have few rows, and some lines are malformed."""
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1 << 10)
    malformed = {0, 1, 40, 41, 42, 43, 299} | set(range(100, 180))
    lines = ["broken" if number in malformed else line_of(name, number) for number in range(300)]
    header = [HEADER.strip()] if ".csv" in name else []
    chunks = read_chunks(write(tmp_path / name, "\n".join([*header, *lines]) + "\n"), rows)
    raw = concatenate(chunks)
    assert raw.frame.to_dicts() == [make_row(number) for number in range(300) if number not in malformed]
    assert raw.row_numbers.to_list() == [number for number in range(300) if number not in malformed]
    assert [(row, content) for row, _, content in malformed_rows(raw)] == [(n, "broken") for n in sorted(malformed)]
    for chunk in chunks:
        assert len(chunk.row_numbers) == chunk.frame.height
    if rows < 300:
        assert len(chunks) > 1
        assert max(chunk.frame.height for chunk in chunks) < rows + 60  # the last block may add more


def test_chunks_of_a_parquet_file_contain_its_rows_in_order(tmp_path: Path) -> None:
    """Groups of 4 rows in chunks of about 10, and one group in many chunks."""
    frame = pl.DataFrame({"user_id": [f"u{n}" for n in range(103)], "genres": [["a"] * (n % 3) for n in range(103)]})
    for size, rows in ((4, 10), (103, 10)):
        frame.write_parquet(tmp_path / "log.parquet", row_group_size=size)
        chunks = read_chunks(tmp_path / "log.parquet", rows)
        assert concatenate(chunks).frame.equals(frame)
        assert concatenate(chunks).row_numbers.to_list() == list(range(103))
        assert {10 <= chunk.frame.height < 20 for chunk in chunks[:-1]} == {True}


def test_column_of_the_last_line_is_in_every_chunk_with_its_type(tmp_path: Path) -> None:
    lines = [*(json.dumps({"item_id": number}) for number in range(20)), '{"item_id": "x", "genres": ["a"]}']
    chunks = read_chunks(write(tmp_path / "items.jsonl", "\n".join(lines)), 3)
    assert {tuple(chunk.frame.schema.items()) for chunk in chunks} == {
        (("item_id", pl.String), ("genres", pl.List(pl.String)))
    }
    assert concatenate(chunks).frame["item_id"].to_list() == [*map(str, range(20)), "x"]
    assert concatenate(chunks).frame["genres"].to_list() == [*[None] * 20, ["a"]]


@pytest.mark.parametrize("content", [HEADER, HEADER + "short\n"], ids=["header", "header and a malformed line"])
def test_csv_file_without_rows_is_one_chunk_with_its_columns(tmp_path: Path, content: str) -> None:
    (chunk,) = read_chunks(write(tmp_path / "log.csv", content), 10)
    assert chunk.frame.columns == ["user_id", "item_id", "timestamp"]
    assert chunk.frame.height == 0
    assert chunk.malformed.height == content.count("short")


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.jsonl"])
def test_invalid_bytes_at_the_end_of_a_long_file_are_rejected(tmp_path: Path, name: str) -> None:
    line = '{{"user_id": "{}"}}\n' if "json" in name else "{},i,1\n"
    content = ("" if "json" in name else HEADER) + "".join(line.format(number) for number in range(150_000))
    path = write(tmp_path / name, content.encode() + b"\xff")
    (unit,) = plan_units([str(path)], 1_000_000)
    with pytest.raises(InputError, match=r"must be a (csv|jsonl) file") as error:
        list(read_unit(unit, 1_000))
    assert str(path) in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.jsonl.gz", "log.parquet"])
def test_memory_of_a_reader_is_less_than_half_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The peak memory of Arrow and Python is compared with the size of all rows."""
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1 << 16)  # Arrow reads dozens of blocks ahead
    count, text = 20_000, "x" * 1_000
    rows = {"user_id": [f"{number}" for number in range(count)], "item_id": [text] * count}
    if name.endswith("parquet"):
        pl.DataFrame(rows).write_parquet(tmp_path / name, row_group_size=2_000)
    elif "json" in name:
        write(tmp_path / name, "".join(f'{{"user_id": "{number}", "item_id": "{text}"}}\n' for number in range(count)))
    else:
        write(tmp_path / name, "user_id,item_id\n" + "".join(f"{number},{text}\n" for number in range(count)))
    (unit,) = plan_units([str(tmp_path / name)], 1_000_000)
    del rows
    before, arrow_bytes, num_rows = pa.total_allocated_bytes(), 0, 0
    tracemalloc.start()
    for raw in read_unit(unit, 1_000):
        arrow_bytes = max(arrow_bytes, pa.total_allocated_bytes() - before)
        num_rows += raw.frame.height
    python_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_rows == count
    assert arrow_bytes + python_bytes < count * len(text) / 2


# --- by URL


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.jsonl", "log.jsonl.gz", "log.parquet"])
def test_files_in_object_storage_are_read_like_local_files(tmp_path: Path, bucket: Any, name: str) -> None:
    if name.endswith("parquet"):
        pl.DataFrame([make_row(number) for number in range(500)]).write_parquet(tmp_path / name, row_group_size=90)
    else:
        header = [HEADER.strip()] if ".csv" in name else []
        lines = ["broken" if number % 9 == 4 else line_of(name, number) for number in range(500)]
        write(tmp_path / name, "\n".join([*header, *lines]))
    bucket.put(f"in/{name}", (tmp_path / name).read_bytes())
    assert find_files(f"{bucket.url}/in/*", "data.interactions") == [f"{bucket.url}/in/{name}"]
    local, remote = (read_chunks(source, 60) for source in (tmp_path / name, f"{bucket.url}/in/{name}"))
    assert sum(raw.frame.height for raw in local) > 400
    for expected, received in zip(local, remote, strict=True):
        assert all(a.equals(b) for a, b in zip(expected, received, strict=True))
