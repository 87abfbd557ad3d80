"""Tests for every sink of exported neighbors: readers see one complete export, or the next."""

from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

from pipelines.export.sinks.base import Export, deliver
from pipelines.export.sinks.registry import open_sink
from recsys.retrieval.bulk import SCHEMA

ODD_IDS = ["ü 😀", 'quote " and \\ slash', "new\nline\r\n", "comma,", "", "NULL", "x" * 300, "{}", "'; DROP TABLE x --"]
"""Unusual item ids. None contains NUL, which PostgreSQL cannot store."""


def ignore_progress(*_, **__):
    """Ignore progress."""


class Killed(Exception):  # noqa: N818 - not an error, but the end of a process
    """Raised instead of a signal."""


def expected_rows(export):
    """Return the rows of an export, sorted."""
    rows = pl.concat([pl.read_parquet(part) for part in export.parts])
    return sorted(rows.rows())


class SinkContract:
    """Inherit, and provide the fixture `url` and the method `visible_rows(url)`, which reads the sink with other code.

    `visible_rows` returns sorted rows (item_id, rank, neighbor_id, similarity, probability).
    """

    def visible_rows(self, url):
        raise NotImplementedError

    @pytest.fixture
    def export(self, tmp_path):
        """Return a function that creates an export of two parts."""

        def make(name, item_ids=("a", "b", "c"), k=2, *, calibrated=True):
            rows = [
                (
                    item,
                    rank + 1,
                    item_ids[(position + rank + 1) % len(item_ids)],
                    value,
                    value**2 if calibrated else None,
                )
                for position, item in enumerate(item_ids)
                for rank in range(k)
                for value in [1 / 3 - len(name) / 100 - rank / 7e9 + position]
            ]
            cut = 2 * k
            parts = []
            for number, chunk in enumerate([rows[:cut], rows[cut:]]):
                parts.append(tmp_path / f"{name}-part-{number:05d}.parquet")
                pl.DataFrame(chunk, schema=SCHEMA, orient="row").write_parquet(parts[-1])
            return Export(name, name.partition("-")[0], k, len(item_ids), len(rows), tuple(parts))

        return make

    def deliver(self, url, export):
        with closing(open_sink(url)) as sink:
            deliver(export, sink, ignore_progress)

    def test_has_no_current_export_before_the_first(self, url):
        for _ in range(2):
            with closing(open_sink(url)) as sink:
                assert sink.current_export_id() is None

    @pytest.mark.parametrize("calibrated", [True, False])
    def test_readers_get_the_exact_rows(self, url, export, calibrated):
        created = export("one-1", calibrated=calibrated)
        self.deliver(url, created)
        assert self.visible_rows(url) == expected_rows(created)

    def test_keeps_unusual_item_ids(self, url, export):
        created = export("odd-1", ODD_IDS, 5)
        self.deliver(url, created)
        assert self.visible_rows(url) == expected_rows(created)

    def test_delivering_twice_changes_nothing(self, url, export):
        created = export("one-1")
        self.deliver(url, created)
        self.deliver(url, created)
        assert self.visible_rows(url) == expected_rows(created)
        with closing(open_sink(url)) as sink:
            assert sink.current_export_id() == "one-1"

    def test_replaces_the_previous_release(self, url, export):
        self.deliver(url, export("one-1", ["gone", "a", "b"], 3))
        second = export("two-1", ["a", "b", "new", "newer"])
        self.deliver(url, second)
        assert self.visible_rows(url) == expected_rows(second)
        assert self.count_stored(url, "one-1") == 0

    def count_stored(self, url, export_id):
        """Return how much is stored of an export, visible or not."""
        raise NotImplementedError

    def test_a_smaller_k_leaves_no_ranks_behind(self, url, export):
        self.deliver(url, export("one-20", k=3))
        fewer = export("one-10", k=1)
        self.deliver(url, fewer)
        assert self.visible_rows(url) == expected_rows(fewer)

    def test_can_return_to_an_earlier_export(self, url, export):
        first, second = export("one-1", k=3), export("two-1", k=1)
        for delivered in (first, second, first):
            self.deliver(url, delivered)
        assert self.visible_rows(url) == expected_rows(first)
        assert self.count_stored(url, "two-1") == 0

    @pytest.mark.parametrize("written_parts", ["nothing", "one part", "all parts"])
    @pytest.mark.parametrize("end", ["killed", "failed"])
    def test_readers_see_the_previous_export_until_publication(self, url, export, written_parts, end):
        first, second = export("one-1"), export("two-1", ["a", "x", "y", "z"])
        self.deliver(url, first)
        sink = open_sink(url)
        for part in second.parts[: ["nothing", "one part", "all parts"].index(written_parts)]:
            sink.write(second, part)
            assert self.visible_rows(url) == expected_rows(first)
        if end == "killed":
            self.kill(sink)
        else:
            sink.close()
        assert self.visible_rows(url) == expected_rows(first)
        self.deliver(url, second)
        assert self.visible_rows(url) == expected_rows(second)
        assert self.count_stored(url, "one-1") == 0

    def kill(self, sink):
        """Do what the end of a process does to its connections and files."""

    def test_after_a_kill_between_publication_and_cleanup_the_next_delivery_cleans_up(self, url, export):
        first, second = export("one-1"), export("two-1", ["x", "y", "z"])
        self.deliver(url, first)
        sink = open_sink(url)
        for part in second.parts:
            sink.write(second, part)
        sink.publish(second)
        self.kill(sink)
        assert self.visible_rows(url) == expected_rows(second)
        self.deliver(url, second)
        assert self.visible_rows(url) == expected_rows(second)
        assert self.count_stored(url, "one-1") == 0

    def test_an_unpublished_first_export_leaves_no_rows(self, url, export):
        created = export("one-1")
        with closing(open_sink(url)) as sink:
            sink.write(created, created.parts[0])
        with closing(open_sink(url)) as sink:
            assert sink.current_export_id() is None
        self.deliver(url, created)
        assert self.visible_rows(url) == expected_rows(created)


def list_files(path: Path) -> list[str]:
    """Return the relative paths of all files below a folder."""
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
