"""Where neighbors go: every sink is read back with another library than the one that wrote."""

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

from pipelines.export import sinks
from recsys.config.urls import Address
from recsys.errors import ConfigError, InputError, RecsysError, StageError
from recsys.testing.sink_contract import SinkContract, expected, written
from tests.pipelines import servers

ROWS = "SELECT item_id, rank, neighbor_id, similarity, probability FROM recsys_neighbors ORDER BY 1, 2"
LEFT = "SELECT count(*) FROM recsys_neighbors_by_export WHERE export_id = "


def rows_of_answers(answers):
    return sorted(
        (item, n["rank"], n["item_id"], n["similarity"], n["probability"])
        for item, neighbors in answers
        for n in neighbors
    )


class TestParquet(SinkContract):
    @pytest.fixture
    def url(self, tmp_path):
        return str(tmp_path / "new" / "neighbors.parquet")

    def seen(self, url):
        manifest = json.loads((Path(url) / "_MANIFEST.json").read_text())
        return sorted(pl.read_parquet([Path(url) / name for name in manifest["files"]]).rows())

    def left(self, url, export_id):
        return len(list(Path(url).glob(f"*{export_id}*")))

    def test_a_folder_with_other_things_is_refused_and_left_alone(self, tmp_path):
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.jpg").touch()
        with pytest.raises(InputError, match=r"photos, which holds cat.jpg"):
            sinks.at(str(tmp_path / "photos"))
        assert written(tmp_path) == ["photos/cat.jpg"]

    def test_a_stage_of_a_night_is_not_taken_for_an_export(self, tmp_path):
        (tmp_path / "_MANIFEST.json").write_text("{}")
        with pytest.raises(InputError, match="must be of neighbors that were exported"):
            sinks.at(str(tmp_path)).current()


class TestJsonLines(SinkContract):
    @pytest.fixture
    def url(self, tmp_path):
        return str(tmp_path / "new" / "neighbors.jsonl")

    def seen(self, url):
        lines = [json.loads(line) for line in Path(url).read_text(encoding="utf-8").split("\n") if line]
        assert len({line["export_id"] for line in lines}) <= 1
        assert {line["release_id"] for line in lines} == {line["export_id"].partition("-")[0] for line in lines}
        return rows_of_answers((line["item_id"], line["neighbors"]) for line in lines)

    def left(self, url, export_id):
        return sum(path.read_text().count(export_id) for path in Path(url).parent.iterdir())

    def kill(self, sink):
        if sink._file is not None:
            sink._file.close()

    @pytest.mark.parametrize("content", ["", "user_id,item_id\n", '{"item_id": "a"}\n', "[]\n", "\x00\xff"])
    def test_a_file_of_something_else_is_refused_and_left_alone(self, url, content):
        Path(url).parent.mkdir()
        Path(url).write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=r"neighbors\.jsonl, which holds something else"):
            sinks.at(url).current()
        assert Path(url).read_text(encoding="utf-8") == content


class TestParquetByUrl(SinkContract):
    @pytest.fixture
    def url(self, bucket):
        return f"{bucket.url}/new/neighbors.parquet"

    @pytest.fixture(autouse=True)
    def _stored(self, bucket):
        self.bucket = bucket

    def seen(self, url):
        folder = url.removeprefix(f"{self.bucket.url}/")
        names = json.loads(self.bucket.get(f"{folder}/_MANIFEST.json"))["files"]
        return sorted(row for name in names for row in pl.read_parquet(self.bucket.get(f"{folder}/{name}")).rows())

    def left(self, url, export_id):  # noqa: ARG002 - a bucket holds one export
        return sum(export_id in name for name in self.bucket.names())

    def test_a_prefix_with_other_things_is_refused_and_left_alone(self, bucket):
        bucket.put("photos/cat.jpg", b"")
        with pytest.raises(InputError, match=r"photos, which holds cat.jpg"):
            sinks.at(f"{bucket.url}/photos")
        assert bucket.names() == ["photos/cat.jpg"]

    def test_a_stage_of_a_night_is_not_taken_for_an_export(self, bucket):
        bucket.put("stage/_MANIFEST.json", b"{}")
        with pytest.raises(InputError, match="must be of neighbors that were exported"):
            sinks.at(f"{bucket.url}/stage").current()


class TestJsonLinesByUrl(SinkContract):
    @pytest.fixture
    def url(self, bucket):
        return f"{bucket.url}/new/neighbors.jsonl"

    @pytest.fixture(autouse=True)
    def _stored(self, bucket):
        self.bucket = bucket

    def seen(self, url):
        text = self.bucket.get(url.removeprefix(f"{self.bucket.url}/")).decode()
        lines = [json.loads(line) for line in text.split("\n") if line]
        assert len({line["export_id"] for line in lines}) <= 1
        return rows_of_answers((line["item_id"], line["neighbors"]) for line in lines)

    def left(self, url, export_id):  # noqa: ARG002 - a bucket holds one export
        return sum(self.bucket.get(name).decode().count(export_id) for name in self.bucket.names())

    def kill(self, sink):
        if sink._file is not None:
            sink._file.close()

    def test_the_draft_does_not_stay(self, url, export, tmp_path):
        made = export("one-1")
        self.deliver(url, made)
        assert written(tmp_path) == sorted(part.name for part in made.parts)

    def test_an_object_of_something_else_is_refused_and_left_alone(self, url, bucket):
        bucket.put("new/neighbors.jsonl", b"user_id,item_id\n")
        with pytest.raises(InputError, match=r"neighbors\.jsonl, which holds something else"):
            sinks.at(url).current()
        assert bucket.get("new/neighbors.jsonl") == b"user_id,item_id\n"


@pytest.mark.parametrize("name", ["out", "out.jsonl"])
@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_not_there_is_told_before_any_work(name):
    with pytest.raises(InputError, match=r"s3://no-such-bucket.*does not exist") as caught:
        sinks.at(f"s3://no-such-bucket/{name}").current()
    assert "\n" not in str(caught.value)


class TestSqlite(SinkContract):
    @pytest.fixture
    def url(self, tmp_path):
        return f"sqlite:///{tmp_path}/new/all.db"

    def seen(self, url):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            return sorted(connection.execute(ROWS).fetchall())

    def left(self, url, export_id):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            return connection.execute(f"{LEFT} ?", [export_id]).fetchone()[0]

    def kill(self, sink):
        sink._connection.close()

    def test_asking_makes_no_file(self, url, tmp_path):
        with closing(sinks.at(url)) as sink:
            assert sink.current() is None
        assert written(tmp_path) == []

    def test_tables_of_others_stay(self, url, export, tmp_path):
        (tmp_path / "new").mkdir()
        with closing(sqlite3.connect(tmp_path / "new" / "all.db")) as connection:
            connection.execute("CREATE TABLE neighbors AS SELECT 7 AS mine")
        self.deliver(url, export("one-1"))
        with closing(sqlite3.connect(tmp_path / "new" / "all.db")) as connection:
            assert connection.execute("SELECT mine FROM neighbors").fetchall() == [(7,)]

    def test_rows_that_somebody_else_removed_are_not_switched_to(self, url, export):
        first, second = export("one-1"), export("two-1")
        self.deliver(url, first)
        with closing(sinks.at(url)) as sink:
            for part in second.parts:
                sink.write(second, part)
            with closing(sinks.at(url)) as other:
                other.clean(first)
            with pytest.raises(StageError, match="Received: 0 of 6 rows"):
                sink.switch(second)
        assert self.seen(url) == expected(first)

    def test_what_is_no_database_is_told_and_left_alone(self, tmp_path):
        (tmp_path / "all.db").write_text("no database, but a long text" * 50)
        before = (tmp_path / "all.db").read_bytes()
        sink = sinks.at(f"sqlite:///{tmp_path}/all.db")
        with closing(sink), pytest.raises(StageError, match="not a database"):
            sink.current()
        assert (tmp_path / "all.db").read_bytes() == before

    def test_a_reader_finds_its_rows_by_the_key(self, url, export):
        self.deliver(url, export("one-1"))
        asked = "EXPLAIN QUERY PLAN SELECT neighbor_id FROM recsys_neighbors WHERE item_id = 'a' ORDER BY rank"
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            plan = " ".join(row[3] for row in connection.execute(asked))
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

    def seen(self, url):
        with psycopg.connect(url) as connection:
            return sorted(connection.execute(ROWS).fetchall())

    def left(self, url, export_id):
        with psycopg.connect(url) as connection:
            return connection.execute(f"{LEFT} %s", [export_id]).fetchone()[0]

    def kill(self, sink):
        sink._connection.pgconn.finish()

    def test_one_process_writes_at_a_time(self, url, export):
        first, second = export("one-1"), export("two-1")
        with closing(sinks.at(url)) as sink, closing(sinks.at(url)) as other:
            sink.write(first, first.parts[0])
            with pytest.raises(StageError, match="another one is at it"):
                other.write(second, second.parts[0])

    def test_an_id_that_it_cannot_hold_is_told_and_leaves_nothing(self, url, export):
        first = export("one-1")
        self.deliver(url, first)
        with pytest.raises(StageError, match="0x00"):
            self.deliver(url, export("two-1", ["a", "nul \0", "b"]))
        assert self.seen(url) == expected(first)

    def test_tables_that_are_there_need_no_right_to_create(self, url, export):
        self.deliver(url, export("one-1"))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP ROLE IF EXISTS exporter")
            connection.execute("CREATE ROLE exporter LOGIN")
            for table in ("recsys_neighbors_by_export", "recsys_neighbors_current"):
                connection.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO exporter")
            connection.execute("REVOKE CREATE ON SCHEMA public FROM public")
        second = export("two-1")
        self.deliver(url.replace("tester", "exporter"), second)
        assert self.seen(url) == expected(second)


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

    def seen(self, url):
        with redis.Redis.from_url(url) as client:
            answers = client.hgetall("recsys:neighbors").items()
        return rows_of_answers((item.decode(), json.loads(answer)["neighbors"]) for item, answer in answers)

    def left(self, url, export_id):
        """An export that is not the current one has a key of its own, or the one that `switch` put away."""
        with redis.Redis.from_url(url, decode_responses=True) as client:
            assert client.hget("recsys:neighbors:about", "export_id") != export_id
            return len({*client.keys("*")} - {"recsys:neighbors", "recsys:neighbors:about"})

    def kill(self, sink):
        sink._client.close()

    def test_what_readers_see_stays_and_what_they_do_not_see_goes_by_itself(self, url, export):
        first, second = export("one-1"), export("two-1")
        self.deliver(url, first)
        sink = sinks.at(url)
        sink.write(second, second.parts[0])
        self.kill(sink)
        with redis.Redis.from_url(url) as client:
            assert client.ttl("recsys:neighbors") == -1
            assert 0 < client.ttl("recsys:neighbors:two-1") <= 24 * 60 * 60

    def test_rows_that_somebody_else_removed_are_not_switched_to(self, url, export):
        first, second = export("one-1"), export("two-1")
        self.deliver(url, first)
        with closing(sinks.at(url)) as sink, redis.Redis.from_url(url) as client:
            for part in second.parts:
                sink.write(second, part)
            client.hdel("recsys:neighbors:two-1", "a")
            with pytest.raises(StageError, match="Received: 2 of 3 items"):
                sink.switch(second)
        assert self.seen(url) == expected(first)

    def test_a_full_server_is_told_in_one_line(self, url, export):
        made = export("one-1")
        with redis.Redis.from_url(url) as client:
            client.config_set("maxmemory", 1)
            try:
                with pytest.raises(StageError, match="maxmemory") as caught:
                    self.deliver(url, made)
            finally:
                client.config_set("maxmemory", 0)
        assert len(str(caught.value)) < 500
        with closing(sinks.at(url)) as sink:
            assert sink.current() is None


# --- which sink, and what cannot be one


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("out", "ParquetFolder"),
        ("out.parquet", "ParquetFolder"),
        ("out.jsonl", "JsonLines"),
        ("sqlite:///out.db", "Sqlite"),
        ("postgresql://host/db", "Postgresql"),
        ("postgres://host/db", "Postgresql"),
        ("redis://host", "Redis"),
        ("rediss://host", "Redis"),
    ],
)
def test_the_name_tells_the_sink_and_nothing_is_asked_yet(to, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with closing(sinks.at(to)) as sink:
        assert type(sink).__name__ == name
    assert written(tmp_path) == []


@pytest.mark.parametrize(
    "to", ["out.csv", "mysql://me:secret@host/db", "s3://bucket/out.csv", "ftp://host/out", "sqlite://", "sqlite:///"]
)
def test_any_other_name_is_refused_with_those_that_there_are(to):
    with pytest.raises(ConfigError, match=r"^neighbors.to must") as caught:
        sinks.at(to)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("to", ["{}/file/out", "{}/file/out.jsonl", "sqlite:///{}/file/out.db", "{}/file"])
def test_a_place_below_a_file_is_refused_before_any_work(to, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="must lie in a folder that we may write to"):
        sinks.at(to.format(tmp_path))
    assert written(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("to", ["{}/out", "{}/out.jsonl", "sqlite:///{}/out.db"])
def test_a_folder_that_may_not_be_written_is_refused_before_any_work(to, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="must lie in a folder that we may write to"):
        sinks.at(to.format(tmp_path))


@pytest.mark.parametrize(("scheme", "library"), [("postgresql", "psycopg"), ("redis", "redis")])
def test_a_missing_library_is_told_with_its_remedy(scheme, library, monkeypatch):
    monkeypatch.delitem(sys.modules, f"pipelines.export.sinks.{scheme}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"{library}.*Install recsys\[export\]"):
        sinks.at(f"{scheme}://host")


# --- passwords


AWAY = "127.0.0.1:1"
"""An address where nobody listens."""


@pytest.mark.parametrize(
    "to",
    [
        f"postgresql://me:se%25cret@{AWAY}/db",
        f"postgresql://me@{AWAY}/db?password=se%25cret",
        "postgresql://me:se%25cret@host:port/db",
        f"postgresql://me:se%25cret@{AWAY}/db?no_such=1",
        f"redis://:se%25cret@{AWAY}/0",
        f"redis://{AWAY}/0?password=se%25cret",
        "redis://:se%25cret@host:port/0",
    ],
)
def test_a_server_that_is_away_is_told_in_one_line_without_the_password(to):
    with closing(sinks.at(to)) as sink, pytest.raises(RecsysError) as caught:
        sink.current()
    assert type(caught.value) is StageError
    assert "se%25cret" not in str(caught.value)
    assert "se%cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in repr(sink.__dict__)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:p@ss@host:1/0", "redis://…@host:1/0"),
        ("postgresql://me:p@ss@host/db?sslmode=off", "postgresql://…@host/db"),
        ("postgresql://host/db?sslmode=off&password=p@ss", "postgresql://…"),
        ("postgresql://me:what?p@ss@host/db", "postgresql://…"),
    ],
)
def test_an_address_is_shown_without_what_may_be_secret(url, shown):
    address = Address(url)
    assert address.shown == shown
    assert "p@ss" not in address.without_secret(f"cannot read {url}: {url.partition('://')[2]}")
    assert "p@ss" not in repr(address)


@pytest.mark.parametrize("url", ["redis://host:1/0", "postgresql://host/db", "sqlite:///all.db", "folder/with @ sign"])
def test_an_address_without_a_secret_is_shown_as_it_is(url):
    assert Address(url).shown == url
    assert Address(url).without_secret(f"cannot read {url}") == f"cannot read {url}"
