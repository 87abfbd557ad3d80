"""What holds for every sink of neighbors: readers see one export whole, or the next."""

from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

from pipelines.export import sinks
from pipelines.export.sinks.base import Export, deliver
from recsys.retrieval.bulk import SCHEMA

ODD_IDS = ["ü 😀", 'quote " and \\ slash', "new\nline\r\n", "comma,", "", "NULL", "x" * 300, "{}", "'; DROP TABLE x --"]
"""Ids that somebody's catalog has. None holds a NUL, which PostgreSQL does not take."""


def silent(*_, **__):
    """Progress that nobody sees."""


class Killed(Exception):  # noqa: N818 - no error, but the end of a process
    """Raised in the place of a signal."""


def expected(export):
    """Rows of an export, item by item in the order of the ids."""
    rows = pl.concat([pl.read_parquet(part) for part in export.parts])
    return sorted(rows.rows())


class SinkContract:
    """Inherit and give `url`, where the sink is, and `seen(url)`, what a reader finds there without our code.

    `seen` gives rows (item_id, rank, neighbor_id, similarity, probability), sorted; none before the first export.
    """

    def seen(self, url):
        raise NotImplementedError

    @pytest.fixture
    def export(self, tmp_path):
        """`export(name, item_ids, k, calibrated)` makes an export of two parts."""

        def make(name, item_ids=("a", "b", "c"), k=2, *, calibrated=True):
            rows = [
                (item, rank + 1, item_ids[(place + rank + 1) % len(item_ids)], value, value**2 if calibrated else None)
                for place, item in enumerate(item_ids)
                for rank in range(k)
                for value in [1 / 3 - len(name) / 100 - rank / 7e9 + place]
            ]
            cut = 2 * k
            parts = []
            for number, chunk in enumerate([rows[:cut], rows[cut:]]):
                parts.append(tmp_path / f"{name}-part-{number:05d}.parquet")
                pl.DataFrame(chunk, schema=SCHEMA, orient="row").write_parquet(parts[-1])
            return Export(name, name.partition("-")[0], k, len(item_ids), len(rows), tuple(parts))

        return make

    def deliver(self, url, export):
        with closing(sinks.at(url)) as sink:
            deliver(export, sink, silent)

    def test_before_the_first_export_there_is_nothing_and_asking_leaves_nothing(self, url):
        for _ in range(2):
            with closing(sinks.at(url)) as sink:
                assert sink.current() is None

    @pytest.mark.parametrize("calibrated", [True, False])
    def test_a_reader_finds_the_rows_to_the_last_digit(self, url, export, calibrated):
        made = export("one-1", calibrated=calibrated)
        self.deliver(url, made)
        assert self.seen(url) == expected(made)

    def test_odd_item_ids_come_back_as_they_were(self, url, export):
        made = export("odd-1", ODD_IDS, 5)
        self.deliver(url, made)
        assert self.seen(url) == expected(made)

    def test_twice_is_as_once(self, url, export):
        made = export("one-1")
        self.deliver(url, made)
        self.deliver(url, made)
        assert self.seen(url) == expected(made)
        with closing(sinks.at(url)) as sink:
            assert sink.current() == "one-1"

    def test_the_next_release_takes_the_place_of_the_first(self, url, export):
        self.deliver(url, export("one-1", ["gone", "a", "b"], 3))
        second = export("two-1", ["a", "b", "new", "newer"])
        self.deliver(url, second)
        assert self.seen(url) == expected(second)
        assert self.left(url, "one-1") == 0

    def left(self, url, export_id):
        """What is stored of an export, seen or not."""
        raise NotImplementedError

    def test_another_k_of_the_same_release_leaves_no_rank_behind(self, url, export):
        self.deliver(url, export("one-20", k=3))
        fewer = export("one-10", k=1)
        self.deliver(url, fewer)
        assert self.seen(url) == expected(fewer)

    def test_what_was_there_before_can_come_back(self, url, export):
        first, second = export("one-1", k=3), export("two-1", k=1)
        for each in (first, second, first):
            self.deliver(url, each)
        assert self.seen(url) == expected(first)
        assert self.left(url, "two-1") == 0

    @pytest.mark.parametrize("done", ["nothing", "one part", "all parts"])
    @pytest.mark.parametrize("end", ["killed", "failed"])
    def test_what_ends_before_the_switch_leaves_the_release_before(self, url, export, done, end):
        first, second = export("one-1"), export("two-1", ["a", "x", "y", "z"])
        self.deliver(url, first)
        sink = sinks.at(url)
        for part in second.parts[: ["nothing", "one part", "all parts"].index(done)]:
            sink.write(second, part)
            assert self.seen(url) == expected(first)
        if end == "killed":
            self.kill(sink)
        else:
            sink.close()
        assert self.seen(url) == expected(first)
        self.deliver(url, second)
        assert self.seen(url) == expected(second)
        assert self.left(url, "one-1") == 0

    def kill(self, sink):
        """What the end of a process does to its connections and files."""

    def test_what_is_killed_after_the_switch_shows_the_new_release_and_cleans_up_later(self, url, export):
        first, second = export("one-1"), export("two-1", ["x", "y", "z"])
        self.deliver(url, first)
        sink = sinks.at(url)
        for part in second.parts:
            sink.write(second, part)
        sink.switch(second)
        self.kill(sink)
        assert self.seen(url) == expected(second)
        self.deliver(url, second)
        assert self.seen(url) == expected(second)
        assert self.left(url, "one-1") == 0

    def test_what_is_given_up_before_the_first_switch_leaves_no_rows(self, url, export):
        made = export("one-1")
        with closing(sinks.at(url)) as sink:
            sink.write(made, made.parts[0])
        with closing(sinks.at(url)) as sink:
            assert sink.current() is None
        self.deliver(url, made)
        assert self.seen(url) == expected(made)


def written(path: Path) -> list[str]:
    """Names below a folder, itself not."""
    return sorted(str(each.relative_to(path)) for each in path.rglob("*") if each.is_file())
