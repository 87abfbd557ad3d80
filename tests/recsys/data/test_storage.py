"""Files by path and by URL, alike: against a real S3 server that is looked into by another library."""

import hashlib
import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest

from recsys.data import storage
from recsys.data.storage import sha256
from recsys.errors import ConfigError, InputError, RecsysError
from recsys.release.runs import data_snapshot
from tests.pipelines.servers import refusing


class Folder:
    """What `Bucket` does, on a folder."""

    def __init__(self, path):
        self.path = path
        self.url = str(path)

    def put(self, name, content):
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_bytes(content)

    def get(self, name):
        return (self.path / name).read_bytes()

    def names(self):
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file())


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path):
    """A place to look into: of this machine, or of a store."""
    return request.getfixturevalue("bucket") if request.param == "bucket" else Folder(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("log/*.csv", ["log/1.csv", "log/10.csv", "log/2.csv"]),
        ("log/?.csv", ["log/1.csv", "log/2.csv"]),
        ("**/*.csv", ["log/1.csv", "log/10.csv", "log/2.csv", "log/old/3.csv"]),
        ("log/2.csv", ["log/2.csv"]),
        ("log/[x] ü.txt", ["log/[x] ü.txt"]),
        ("log", []),
        ("none*", []),
    ],
)
def test_a_glob_finds_the_same_files_everywhere(store, pattern, names):
    for name in ["log/10.csv", "log/2.csv", "log/1.csv", "log/old/3.csv", "log/[x] ü.txt"]:
        store.put(name, b"x")
    assert storage.at(f"{store.url}/{pattern}").files() == [f"{store.url}/{name}" for name in names]


def test_what_was_written_since_is_found_too(store):
    assert storage.at(f"{store.url}/log/*").files() == []
    assert not storage.at(f"{store.url}/log/1").exists()
    store.put("log/1", b"x")
    assert storage.at(f"{store.url}/log/*").files() == [f"{store.url}/log/1"]
    assert storage.at(f"{store.url}/log/1").exists()
    assert storage.at(f"{store.url}/log").names() == ["1"]


def test_a_file_of_many_blocks_is_read_from_anywhere(store):
    content = os.urandom(20 << 20)
    store.put("large", content)
    place = storage.at(store.url) / "large"
    assert place.size() == len(content)
    assert sha256(place.name) == hashlib.sha256(content).hexdigest()
    with place.open() as file:
        file.seek(-5, os.SEEK_END)
        assert (file.read(), file.tell()) == (content[-5:], len(content))
        file.seek(9 << 20)
        assert file.read(100) == content[9 << 20 : (9 << 20) + 100]


def test_what_is_written_copied_and_taken_is_there_and_nothing_else(store, tmp_path):
    spare = tmp_path / "spare"
    spare.mkdir()
    (spare / "file").write_bytes(b"copied")
    place = storage.at(store.url) / "out" / "a"
    place.write(b"old")
    place.write(b"written")
    (storage.at(store.url) / "out" / "deep" / "b").copy(spare / "file")
    taken = storage.at(f"{store.url}/out/c")
    draft = taken.draft(spare)
    draft.write_bytes(b"taken")
    taken.take(draft)
    (spare / "file").unlink()
    assert {name: store.get(name) for name in store.names()} == {
        "out/a": b"written",
        "out/deep/b": b"copied",
        "out/c": b"taken",
    }
    assert storage.at(f"{store.url}/out").names() == ["a", "c", "deep"]
    storage.at(f"{store.url}/out/deep").remove()
    assert store.names() == ["out/a", "out/c"]
    assert list(spare.iterdir()) == []


def test_a_file_that_does_not_become_whole_leaves_what_was_there(tmp_path):
    path = tmp_path / "new folder" / "file"
    with storage.whole(path) as draft:
        draft.write_text("whole")
        assert not path.exists()
    with suppress(KeyboardInterrupt), storage.whole(path) as draft:
        draft.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "whole"
    with storage.whole(path) as draft:
        draft.write_text("whole again")
    assert {file.name: file.read_text() for file in path.parent.iterdir()} == {"file": "whole again"}


def test_a_folder_holds_a_folder_of_its_own_name(store):
    store.put("out/out/a", b"x")
    assert storage.at(f"{store.url}/out").names() == ["out"]


def test_an_object_for_the_prefix_itself_is_no_name(bucket):
    """As consoles of stores make them for an empty folder."""
    bucket.put("out/", b"")
    bucket.put("out/a", b"x")
    assert storage.at(f"{bucket.url}/out").names() == ["a"]


def test_a_snapshot_is_of_the_content_wherever_it_lies(bucket, tmp_path):
    (tmp_path / "one").write_text("1")
    bucket.put("two", b"1")
    here = data_snapshot({"interactions": [str(tmp_path / "one")]})
    assert data_snapshot({"interactions": [f"{bucket.url}/two"]}) == here
    bucket.put("two", b"2")
    assert data_snapshot({"interactions": [f"{bucket.url}/two"]}) != here


# --- what goes wrong is told in one line


def assert_told(caught, *parts):
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text
    assert caught.value.__suppress_context__


ASK = {
    "files": lambda place: place.files(),
    "exists": lambda place: place.exists(),
    "size": lambda place: place.size(),
    "open": lambda place: place.open(),
    "names": lambda place: place.names(),
    "write": lambda place: place.write(b"x"),
    "copy": lambda place: place.copy(Path(__file__)),
    "remove": lambda place: place.remove(),
}


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_not_there(ask):
    with pytest.raises(InputError) as caught:
        ASK[ask](storage.at("s3://no-such-bucket/log.csv"))
    assert_told(caught, "s3://no-such-bucket/log.csv must be there", "does not exist", "credentials")


def test_an_object_that_is_not_there(bucket):
    with pytest.raises(InputError) as caught:
        storage.at(f"{bucket.url}/none.csv").open()
    assert_told(caught, f"{bucket.url}/none.csv must be there")


@pytest.mark.parametrize("ask", ASK)
def test_a_store_that_denies_access(bucket, ask):
    """The server asks for rights from now on, and the dummy key has none."""
    bucket.put("log.csv", b"x")
    with refusing(os.environ["AWS_ENDPOINT_URL"]), pytest.raises(InputError) as caught:
        ASK[ask](storage.at(f"{bucket.url}/log.csv"))
    assert_told(caught, f"{bucket.url}/log.csv must be there, and be ours to use", "credentials in the environment")


def test_no_credentials_at_all(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(InputError) as caught:
        storage.at(f"{bucket.url}/log.csv").exists()
    assert_told(caught, "redentials")


def test_a_store_that_goes_away_while_a_file_is_read(bucket):
    bucket.put("large", bytes(20 << 20))
    with storage.at(f"{bucket.url}/large").open() as file:
        file.read(1)
        bucket.remove("large")
        with pytest.raises(InputError) as caught:
            file.read()
    assert_told(caught, f"{bucket.url}/large must be there")


@pytest.mark.parametrize(
    ("url", "library", "remedy"),
    [
        ("s3://bucket/x", "s3fs", "Install recsys[s3]"),
        ("gs://bucket/x", "gcsfs", "Install recsys[gs]"),
        ("s3://bucket/x", "fsspec", "Install recsys[s3]"),
    ],
)
def test_a_missing_library_is_told_with_its_extra(monkeypatch, url, library, remedy):
    monkeypatch.setitem(sys.modules, library, None)
    if library != "fsspec":  # forget what it has found already
        known = import_module("fsspec.registry")._registry
        monkeypatch.delitem(known, url.partition(":")[0], raising=False)
    with pytest.raises(ConfigError) as caught:
        storage.at(url).files()
    assert_told(caught, url.partition(":")[0], remedy)


def test_a_scheme_that_nobody_knows():
    with pytest.raises(ConfigError) as caught:
        storage.at("nosuch://bucket/x").files()
    assert_told(caught, "nosuch://bucket/x", "fsspec knows")


@pytest.mark.parametrize("url", ["s3://key:se%25cret@bucket/x", "ftp://me:se%25cret@host/log*.csv"])
def test_a_password_in_a_url_is_refused_and_not_shown(url):
    with pytest.raises(RecsysError) as caught:
        storage.at(url)
    assert type(caught.value) is ConfigError
    assert "cret" not in str(caught.value)
    assert "environment" in str(caught.value)


def test_a_path_needs_no_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    (tmp_path / "file").write_text("x")
    assert storage.at(str(tmp_path / "*")).files() == [str(tmp_path / "file")]
    assert sha256(tmp_path / "file") == hashlib.sha256(b"x").hexdigest()
