"""The sinks. Each test reads the rows with a library other than the one that wrote them."""

import json
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import polars as pl
import psycopg
import pytest
import redis

from pipelines.export.answers import ANSWERS
from pipelines.export.sinks.base import Export, deliver
from pipelines.export.sinks.registry import open_sink
from recsys.config.urls import Address
from recsys.errors import ConfigError, InputError, RecsysError, StageError
from recsys.testing.sink_contract import SinkContract, expected_rows, ignore_progress, list_files
from tests.pipelines import servers

ROWS = "SELECT item_id, rank, neighbor_id, similarity, probability FROM recsys_neighbors ORDER BY 1, 2"
COUNT_ROWS = "SELECT count(*) FROM recsys_neighbors_by_export WHERE export_id = "


TOGETHER_ROWS = [
    ("a", 1, "b", 12, 0.25, 1.5, 1 / 3),
    ("a", 2, "c", 0, 0.0, 0.0, 0.125),
    ("b", 1, "a", 7, 0.5, 2.0, 0.2),
]


def deliver_together(url, folder):
    """Export items used together to a database or a file."""
    part = folder / "together-part-00000.parquet"
    pl.DataFrame(TOGETHER_ROWS, schema=ANSWERS["together"].schema, orient="row").write_parquet(part)
    with closing(open_sink(url, ANSWERS["together"])) as sink:
        assert sink.current_export_id() is None
        deliver(Export("both-2", "both", 2, 2, 3, (part,)), sink, ignore_progress)


def together_rows_of_items(items):
    names = ("rank", "item_id", "users", "confidence", "lift", "score")
    return sorted((item, *(n[name] for name in names)) for item, neighbors in items for n in neighbors)


def rows_of_items(items):
    return sorted(
        (item, n["rank"], n["item_id"], n["similarity"], n["probability"])
        for item, neighbors in items
        for n in neighbors
    )


class TestParquet(SinkContract):
    @pytest.fixture
    def url(self, tmp_path):
        return str(tmp_path / "new" / "neighbors.parquet")

    def visible_rows(self, url):
        manifest = json.loads((Path(url) / "_MANIFEST.json").read_text())
        return sorted(pl.read_parquet([Path(url) / name for name in manifest["files"]]).rows())

    def count_stored(self, url, export_id):
        return len(list(Path(url).glob(f"*{export_id}*")))

    def test_rejects_a_folder_with_other_content(self, tmp_path):
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.jpg").touch()
        with pytest.raises(InputError, match=r"photos, which holds cat.jpg"):
            open_sink(str(tmp_path / "photos"))
        assert list_files(tmp_path) == ["photos/cat.jpg"]

    def test_rejects_the_folder_of_a_stage(self, tmp_path):
        (tmp_path / "_MANIFEST.json").write_text("{}")
        with pytest.raises(InputError, match="must be the manifest of exported neighbors"):
            open_sink(str(tmp_path)).current_export_id()


class TestJsonLines(SinkContract):
    @pytest.fixture
    def url(self, tmp_path):
        return str(tmp_path / "new" / "neighbors.jsonl")

    def visible_rows(self, url):
        lines = [json.loads(line) for line in Path(url).read_text(encoding="utf-8").split("\n") if line]
        assert len({line["export_id"] for line in lines}) <= 1
        assert {line["release_id"] for line in lines} == {line["export_id"].partition("-")[0] for line in lines}
        return rows_of_items((line["item_id"], line["neighbors"]) for line in lines)

    def count_stored(self, url, export_id):
        return sum(path.read_text().count(export_id) for path in Path(url).parent.iterdir())

    def kill(self, sink):
        if sink._file is not None:
            sink._file.close()

    @pytest.mark.parametrize("content", ["", "user_id,item_id\n", '{"item_id": "a"}\n', "[]\n", "\x00\xff"])
    def test_rejects_a_file_with_other_content(self, url, content):
        Path(url).parent.mkdir()
        Path(url).write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=r"neighbors\.jsonl, which has other content"):
            open_sink(url).current_export_id()
        assert Path(url).read_text(encoding="utf-8") == content


class TestParquetByUrl(SinkContract):
    @pytest.fixture
    def url(self, bucket):
        return f"{bucket.url}/new/neighbors.parquet"

    @pytest.fixture(autouse=True)
    def _set_bucket(self, bucket):
        self.bucket = bucket

    def visible_rows(self, url):
        folder = url.removeprefix(f"{self.bucket.url}/")
        names = json.loads(self.bucket.get(f"{folder}/_MANIFEST.json"))["files"]
        return sorted(row for name in names for row in pl.read_parquet(self.bucket.get(f"{folder}/{name}")).rows())

    def count_stored(self, url, export_id):  # noqa: ARG002 - the bucket contains one export
        return sum(export_id in name for name in self.bucket.names())

    def test_rejects_a_prefix_with_other_content(self, bucket):
        bucket.put("photos/cat.jpg", b"")
        with pytest.raises(InputError, match=r"photos, which holds cat.jpg"):
            open_sink(f"{bucket.url}/photos")
        assert bucket.names() == ["photos/cat.jpg"]

    def test_rejects_the_folder_of_a_stage(self, bucket):
        bucket.put("stage/_MANIFEST.json", b"{}")
        with pytest.raises(InputError, match="must be the manifest of exported neighbors"):
            open_sink(f"{bucket.url}/stage").current_export_id()


class TestJsonLinesByUrl(SinkContract):
    @pytest.fixture
    def url(self, bucket):
        return f"{bucket.url}/new/neighbors.jsonl"

    @pytest.fixture(autouse=True)
    def _set_bucket(self, bucket):
        self.bucket = bucket

    def visible_rows(self, url):
        text = self.bucket.get(url.removeprefix(f"{self.bucket.url}/")).decode()
        lines = [json.loads(line) for line in text.split("\n") if line]
        assert len({line["export_id"] for line in lines}) <= 1
        return rows_of_items((line["item_id"], line["neighbors"]) for line in lines)

    def count_stored(self, url, export_id):  # noqa: ARG002 - the bucket contains one export
        return sum(self.bucket.get(name).decode().count(export_id) for name in self.bucket.names())

    def kill(self, sink):
        if sink._file is not None:
            sink._file.close()

    def test_removes_the_draft(self, url, export, tmp_path):
        created = export("one-1")
        self.deliver(url, created)
        assert list_files(tmp_path) == sorted(part.name for part in created.parts)

    def test_rejects_an_object_with_other_content(self, url, bucket):
        bucket.put("new/neighbors.jsonl", b"user_id,item_id\n")
        with pytest.raises(InputError, match=r"neighbors\.jsonl, which has other content"):
            open_sink(url).current_export_id()
        assert bucket.get("new/neighbors.jsonl") == b"user_id,item_id\n"


@pytest.mark.parametrize("name", ["out", "out.jsonl"])
@pytest.mark.usefixtures("bucket")
def test_reports_a_missing_bucket_before_writing(name):
    with pytest.raises(InputError, match=r"s3://no-such-bucket.*does not exist") as caught:
        open_sink(f"s3://no-such-bucket/{name}").current_export_id()
    assert "\n" not in str(caught.value)


def test_json_lines_have_the_columns_of_the_answer(tmp_path):
    deliver_together(str(tmp_path / "out.jsonl"), tmp_path)
    lines = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert together_rows_of_items((line["item_id"], line["neighbors"]) for line in lines) == TOGETHER_ROWS


class TestSqlite(SinkContract):
    @pytest.fixture
    def url(self, tmp_path):
        return f"sqlite:///{tmp_path}/new/all.db"

    def visible_rows(self, url):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            return sorted(connection.execute(ROWS).fetchall())

    def count_stored(self, url, export_id):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            return connection.execute(f"{COUNT_ROWS} ?", [export_id]).fetchone()[0]

    def kill(self, sink):
        sink._connection.close()

    def test_reading_the_current_export_creates_no_file(self, url, tmp_path):
        with closing(open_sink(url)) as sink:
            assert sink.current_export_id() is None
        assert list_files(tmp_path) == []

    def test_answers_have_tables_of_their_own(self, url, export, tmp_path):
        similar = export("one-1")
        self.deliver(url, similar)
        deliver_together(url, tmp_path)
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            assert connection.execute("SELECT * FROM recsys_together ORDER BY 1, 2").fetchall() == TOGETHER_ROWS
        assert self.visible_rows(url) == expected_rows(similar)

    def test_does_not_change_other_tables(self, url, export, tmp_path):
        (tmp_path / "new").mkdir()
        with closing(sqlite3.connect(tmp_path / "new" / "all.db")) as connection:
            connection.execute("CREATE TABLE neighbors AS SELECT 7 AS value")
        self.deliver(url, export("one-1"))
        with closing(sqlite3.connect(tmp_path / "new" / "all.db")) as connection:
            assert connection.execute("SELECT value FROM neighbors").fetchall() == [(7,)]

    def test_does_not_publish_an_incomplete_export(self, url, export):
        first, second = export("one-1"), export("two-1")
        self.deliver(url, first)
        with closing(open_sink(url)) as sink:
            for part in second.parts:
                sink.write(second, part)
            with closing(open_sink(url)) as second_sink:
                second_sink.remove_previous(first)
            with pytest.raises(StageError, match="Received: 0 of 6 rows"):
                sink.publish(second)
        assert self.visible_rows(url) == expected_rows(first)

    def test_rejects_a_file_that_is_not_a_database(self, tmp_path):
        (tmp_path / "all.db").write_text("not a database, but a long text" * 50)
        before = (tmp_path / "all.db").read_bytes()
        sink = open_sink(f"sqlite:///{tmp_path}/all.db")
        with closing(sink), pytest.raises(StageError, match="not a database"):
            sink.current_export_id()
        assert (tmp_path / "all.db").read_bytes() == before

    def test_readers_use_the_primary_key(self, url, export):
        self.deliver(url, export("one-1"))
        query = "EXPLAIN QUERY PLAN SELECT neighbor_id FROM recsys_neighbors WHERE item_id = 'a' ORDER BY rank"
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            plan = " ".join(row[3] for row in connection.execute(query))
        assert "PRIMARY KEY (export_id=? AND item_id=?)" in plan
        assert "TEMP B-TREE" not in plan


@pytest.fixture(scope="module")
def postgresql():
    with servers.postgresql() as url:
        yield url


class TestPostgresql(SinkContract):
    @pytest.fixture
    def url(self, postgresql):
        with psycopg.connect(postgresql, autocommit=True) as connection:
            connection.execute("DROP VIEW IF EXISTS recsys_neighbors")
            connection.execute("DROP TABLE IF EXISTS recsys_neighbors_by_export, recsys_neighbors_current")
        return postgresql

    def visible_rows(self, url):
        with psycopg.connect(url) as connection:
            return sorted(connection.execute(ROWS).fetchall())

    def count_stored(self, url, export_id):
        with psycopg.connect(url) as connection:
            return connection.execute(f"{COUNT_ROWS} %s", [export_id]).fetchone()[0]

    def kill(self, sink):
        sink._connection.pgconn.finish()

    def test_answers_have_tables_of_their_own(self, url, export, tmp_path):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP VIEW IF EXISTS recsys_together")
            connection.execute("DROP TABLE IF EXISTS recsys_together_by_export, recsys_together_current")
        similar = export("one-1")
        self.deliver(url, similar)
        deliver_together(url, tmp_path)
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT * FROM recsys_together ORDER BY 1, 2").fetchall() == TOGETHER_ROWS
        assert self.visible_rows(url) == expected_rows(similar)

    def test_rejects_a_second_writer(self, url, export):
        first, second = export("one-1"), export("two-1")
        with closing(open_sink(url)) as sink, closing(open_sink(url)) as second_sink:
            sink.write(first, first.parts[0])
            with pytest.raises(StageError, match="Another process is already exporting"):
                second_sink.write(second, second.parts[0])

    def test_rolls_back_an_id_that_postgresql_cannot_store(self, url, export):
        first = export("one-1")
        self.deliver(url, first)
        with pytest.raises(StageError, match="0x00"):
            self.deliver(url, export("two-1", ["a", "nul \0", "b"]))
        assert self.visible_rows(url) == expected_rows(first)

    def test_needs_no_create_privilege_if_the_tables_exist(self, url, export):
        self.deliver(url, export("one-1"))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP ROLE IF EXISTS exporter")
            connection.execute("CREATE ROLE exporter LOGIN")
            for table in ("recsys_neighbors_by_export", "recsys_neighbors_current"):
                connection.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO exporter")
            connection.execute("REVOKE CREATE ON SCHEMA public FROM public")
        second = export("two-1")
        self.deliver(url.replace("tester", "exporter"), second)
        assert self.visible_rows(url) == expected_rows(second)


@pytest.fixture(scope="module")
def redis_url():
    with servers.redis() as url:
        yield url


class TestRedis(SinkContract):
    @pytest.fixture
    def url(self, redis_url):
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()
        return redis_url

    def visible_rows(self, url):
        with redis.Redis.from_url(url) as client:
            fields = client.hgetall("recsys:neighbors").items()
        return rows_of_items((item.decode(), json.loads(value)["neighbors"]) for item, value in fields)

    def count_stored(self, url, export_id):
        """Count the keys of other exports: unpublished ones, and the previous one before it is removed."""
        with redis.Redis.from_url(url, decode_responses=True) as client:
            assert client.hget("recsys:neighbors:about", "export_id") != export_id
            return len({*client.keys("*")} - {"recsys:neighbors", "recsys:neighbors:about"})

    def kill(self, sink):
        sink._client.close()

    def test_answers_have_keys_of_their_own(self, url, export, tmp_path):
        similar = export("one-1")
        self.deliver(url, similar)
        deliver_together(url, tmp_path)
        with redis.Redis.from_url(url, decode_responses=True) as client:
            fields = client.hgetall("recsys:together").items()
            assert client.hget("recsys:together:about", "export_id") == "both-2"
        assert together_rows_of_items((item, json.loads(value)["neighbors"]) for item, value in fields) == TOGETHER_ROWS
        assert self.visible_rows(url) == expected_rows(similar)

    def test_only_unpublished_rows_expire(self, url, export):
        first, second = export("one-1"), export("two-1")
        self.deliver(url, first)
        sink = open_sink(url)
        sink.write(second, second.parts[0])
        self.kill(sink)
        with redis.Redis.from_url(url) as client:
            assert client.ttl("recsys:neighbors") == -1
            assert 0 < client.ttl("recsys:neighbors:two-1") <= 24 * 60 * 60

    def test_does_not_publish_an_incomplete_export(self, url, export):
        first, second = export("one-1"), export("two-1")
        self.deliver(url, first)
        with closing(open_sink(url)) as sink, redis.Redis.from_url(url) as client:
            for part in second.parts:
                sink.write(second, part)
            client.hdel("recsys:neighbors:two-1", "a")
            with pytest.raises(StageError, match="Received: 2 of 3 items"):
                sink.publish(second)
        assert self.visible_rows(url) == expected_rows(first)

    def test_reports_a_full_server_in_one_line(self, url, export):
        created = export("one-1")
        with redis.Redis.from_url(url) as client:
            client.config_set("maxmemory", 1)
            try:
                with pytest.raises(StageError, match="maxmemory") as caught:
                    self.deliver(url, created)
            finally:
                client.config_set("maxmemory", 0)
        assert len(str(caught.value)) < 500
        with closing(open_sink(url)) as sink:
            assert sink.current_export_id() is None


# --- choosing a sink


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("out", "ParquetSink"),
        ("out.parquet", "ParquetSink"),
        ("out.jsonl", "JsonLinesSink"),
        ("sqlite:///out.db", "SqliteSink"),
        ("postgresql://host/db", "PostgresqlSink"),
        ("postgres://host/db", "PostgresqlSink"),
        ("redis://host", "RedisSink"),
        ("rediss://host", "RedisSink"),
    ],
)
def test_chooses_the_sink_by_its_address_without_connecting(to, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with closing(open_sink(to)) as sink:
        assert type(sink).__name__ == name
    assert list_files(tmp_path) == []


@pytest.mark.parametrize(
    "to", ["out.csv", "mysql://me:secret@host/db", "s3://bucket/out.csv", "ftp://host/out", "sqlite://", "sqlite:///"]
)
def test_rejects_unknown_sinks(to):
    with pytest.raises(ConfigError, match=r"^export.to must") as caught:
        open_sink(to)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("to", ["{}/file/out", "{}/file/out.jsonl", "sqlite:///{}/file/out.db", "{}/file"])
def test_rejects_a_location_below_a_file(to, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="must be in a folder with write permission"):
        open_sink(to.format(tmp_path))
    assert list_files(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root has write permission everywhere")
@pytest.mark.parametrize("to", ["{}/out", "{}/out.jsonl", "sqlite:///{}/out.db"])
def test_rejects_a_folder_without_write_permission(to, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="must be in a folder with write permission"):
        open_sink(to.format(tmp_path))


@pytest.mark.parametrize(("scheme", "library"), [("postgresql", "psycopg"), ("redis", "redis")])
def test_reports_a_missing_library(scheme, library, monkeypatch):
    monkeypatch.delitem(sys.modules, f"pipelines.export.sinks.{scheme}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"{library}.*Install recsys\[export\]"):
        open_sink(f"{scheme}://host")


# --- passwords


UNREACHABLE = "127.0.0.1:1"
"""An address where no server listens."""


@pytest.mark.parametrize(
    "to",
    [
        f"postgresql://me:se%25cret@{UNREACHABLE}/db",
        f"postgresql://me@{UNREACHABLE}/db?password=se%25cret",
        "postgresql://me:se%25cret@host:port/db",
        f"postgresql://me:se%25cret@{UNREACHABLE}/db?no_such=1",
        f"redis://:se%25cret@{UNREACHABLE}/0",
        f"redis://{UNREACHABLE}/0?password=se%25cret",
        "redis://:se%25cret@host:port/0",
    ],
)
def test_reports_an_unreachable_server_without_the_password(to):
    with closing(open_sink(to)) as sink, pytest.raises(RecsysError) as caught:
        sink.current_export_id()
    assert type(caught.value) is StageError
    assert "se%25cret" not in str(caught.value)
    assert "se%cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in repr(sink.__dict__)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://:p@ss@host:1/0", "redis://…@host:1/0"),
        ("postgresql://me:p@ss@host/db?sslmode=off", "postgresql://…@host/db"),
        ("postgresql://host/db?sslmode=off&password=p@ss", "postgresql://…"),
        ("postgresql://me:what?p@ss@host/db", "postgresql://…"),
    ],
)
def test_removes_the_secrets_of_an_address(url, expected):
    address = Address(url)
    assert address.shown == expected
    assert "p@ss" not in address.without_secret(f"cannot read {url}: {url.partition('://')[2]}")
    assert "p@ss" not in repr(address)


@pytest.mark.parametrize("url", ["redis://host:1/0", "postgresql://host/db", "sqlite:///all.db", "folder/with @ sign"])
def test_does_not_change_an_address_without_secrets(url):
    assert Address(url).shown == url
    assert Address(url).without_secret(f"cannot read {url}") == f"cannot read {url}"
