"""Click-through by release, from whatever files it comes in."""

from pathlib import Path

import polars as pl
import pytest

from pipelines.reports.feedback import by_release
from recsys.errors import InputError


def test_rows_of_a_release_are_summed_over_files_and_chunks(tmp_path: Path) -> None:
    rows = [("a", 10 + n, n) for n in range(9)] + [("b", 3, 0)]
    frame = pl.DataFrame(rows, schema=["release_id", "shown", "clicked"], orient="row")
    frame[:6].write_parquet(tmp_path / "1.parquet", row_group_size=2)
    frame[6:].write_parquet(tmp_path / "2.parquet")
    result = by_release(str(tmp_path / "*.parquet"), 2)
    assert result["unusable"] == 0
    a, b = result["releases"]
    assert (a["release_id"], a["shown"], a["clicked"]) == ("a", 126, 36)
    assert a["low"] < a["click_through"] == 36 / 126 < a["high"]
    assert (b["shown"], b["click_through"], b["low"]) == (3, 0, 0)
    assert b["high"] > 0.5, "three are few"


@pytest.mark.parametrize("row", ["a,1.5,1", "a,0,0", "a,1,2", "a,1,-1", "a,,1", "a,nan,0", "a,inf,1", ",1,1", "a,x,1"])
def test_invalid_rows_are_ignored(tmp_path: Path, row: str) -> None:
    (tmp_path / "feedback.csv").write_text(f"release_id,shown,clicked\na,4,1\n{row}\n")
    result = by_release(str(tmp_path / "feedback.csv"), 100)
    assert result["unusable"] == 1
    assert [(each["shown"], each["clicked"]) for each in result["releases"]] == [(4, 1)]


def test_error_names_a_missing_column(tmp_path: Path) -> None:
    (tmp_path / "feedback.csv").write_text("release_id,shown\na,4\n")
    with pytest.raises(InputError, match="column 'clicked' must exist"):
        by_release(str(tmp_path / "feedback.csv"), 100)
