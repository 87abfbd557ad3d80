"""Releases in a store: there and back, and nothing that is not whole gets through."""

import json
import shutil
from pathlib import Path

import pytest

from recsys import Release
from recsys.errors import InputError, ReleaseError
from recsys.index.shards import INDEX_FILE
from recsys.release import remote
from recsys.release.formats import EMBEDDINGS, MANIFEST
from tests import GOLDEN_RELEASES

GOLDEN = GOLDEN_RELEASES / "v2"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def release():
    return Release.load(GOLDEN)


@pytest.fixture
def url(bucket, release):
    """A release in the store."""
    return remote.upload(release, f"{bucket.url}/releases")


def edit(bucket, name, change):
    """Change the manifest that is in the store."""
    manifest = json.loads(bucket.get(f"releases/{name}/{MANIFEST}"))
    change(manifest)
    bucket.put(f"releases/{name}/{MANIFEST}", json.dumps(manifest).encode())


def test_what_is_put_there_is_the_release_byte_by_byte(bucket, release, url):
    assert url == f"{bucket.url}/releases/{release.release_id}"
    prefix = f"releases/{release.release_id}/"
    assert {name.removeprefix(prefix): bucket.get(name) for name in bucket.names()} == {
        path.name: path.read_bytes() for path in GOLDEN.iterdir()
    }


def test_what_comes_back_answers_as_it_did(release, url, cache):
    fetched = remote.load(url)
    assert fetched.manifest == release.manifest
    assert fetched.similar("item-1-1") == release.similar("item-1-1")
    assert [path for path in cache.iterdir() if path != fetched.path] == []


def test_it_is_fetched_once(bucket, release, url):
    first = remote.load(url)
    bucket.remove(f"releases/{release.release_id}/{INDEX_FILE}")
    assert remote.load(url).path == first.path


def test_another_release_at_the_same_url_is_another_one(bucket, release, url, write_release):
    remote.load(url)
    other = Release.load(write_release(["a", "b", "c"]))
    for path in other.path.iterdir():
        bucket.put(f"releases/{release.release_id}/{path.name}", path.read_bytes())
    assert remote.load(url).manifest == other.manifest


def test_a_release_of_this_machine_is_no_copy(cache):
    assert remote.load(str(GOLDEN)).path == GOLDEN
    assert not cache.exists()


def test_a_folder_of_releases_may_be_of_this_machine(release, tmp_path):
    place = remote.upload(release, str(tmp_path / "share"))
    assert Path(place).parent == tmp_path / "share"
    assert Release.load(place).manifest == release.manifest


# --- putting it there


def test_a_release_that_is_there_is_not_written_again(bucket, release, url):
    edit(bucket, release.release_id, lambda manifest: manifest.update(created_at="2020-01-01T00:00:00+00:00"))
    before = {name: bucket.get(name) for name in bucket.names()}
    assert remote.upload(release, f"{bucket.url}/releases") == url
    assert {name: bucket.get(name) for name in bucket.names()} == before


@pytest.mark.parametrize("there", ["another release", "no manifest"])
@pytest.mark.usefixtures("url")
def test_another_release_of_its_id_is_never_overwritten(bucket, release, there):
    if there == "another release":
        edit(bucket, release.release_id, lambda manifest: manifest["files"][INDEX_FILE].update(sha256="0" * 64))
    else:
        bucket.put(f"releases/{release.release_id}/{MANIFEST}", b"{")
    before = {name: bucket.get(name) for name in bucket.names()}
    with pytest.raises(ReleaseError, match=rf"{release.release_id} must not be overwritten"):
        remote.upload(release, f"{bucket.url}/releases")
    assert {name: bucket.get(name) for name in bucket.names()} == before


def test_what_a_killed_process_left_is_no_release_and_is_completed(bucket, release, url):
    """The manifest is put last: without it, some files may be there, whole or of an earlier try."""
    bucket.remove(f"releases/{release.release_id}/{MANIFEST}")
    bucket.put(f"releases/{release.release_id}/{EMBEDDINGS}", b"of an earlier try")
    bucket.remove(f"releases/{release.release_id}/{INDEX_FILE}")
    with pytest.raises(ReleaseError, match=rf"must be a folder with a {MANIFEST}. Received: {url}"):
        remote.load(url)
    remote.upload(release, f"{bucket.url}/releases")
    assert remote.load(url).manifest == release.manifest


def test_the_manifest_is_put_last(tmp_path, bucket):
    """A release that loses a file while it is put leaves none."""
    shutil.copytree(GOLDEN, tmp_path / "release")
    damaged = Release.load(tmp_path / "release")
    (tmp_path / "release" / list(damaged.manifest.files)[-1]).unlink()
    with pytest.raises(InputError, match="must exist"):
        remote.upload(damaged, f"{bucket.url}/releases")
    assert bucket.names()
    assert not [name for name in bucket.names() if name.endswith(MANIFEST)]


# --- fetching it


def test_a_file_that_is_missing_there_is_refused(bucket, release, url, cache):
    bucket.remove(f"releases/{release.release_id}/{INDEX_FILE}")
    with pytest.raises(ReleaseError, match=rf"{url} .*: bytes of {INDEX_FILE} must be \d+. Received: no such"):
        remote.load(url)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content + b"x"])
def test_a_file_of_another_size_is_refused_and_not_even_fetched(bucket, release, url, cache, damage):
    name = f"releases/{release.release_id}/{INDEX_FILE}"
    bucket.put(name, damage(bucket.get(name)))
    with pytest.raises(ReleaseError, match=rf"bytes of {INDEX_FILE} must be"):
        remote.load(url)
    assert list(cache.iterdir()) == []


def test_a_file_with_one_other_byte_is_refused(bucket, release, url, cache):
    name = f"releases/{release.release_id}/{EMBEDDINGS}"
    content = bytearray(bucket.get(name))
    content[-7] ^= 1
    bucket.put(name, bytes(content))
    with pytest.raises(ReleaseError, match=rf"{url} is not usable: .*SHA-256 of {EMBEDDINGS}"):
        remote.load(url)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "deep/escaped", "..", "."])  # noqa: S108
def test_a_manifest_that_names_files_elsewhere_is_refused(bucket, release, url, tmp_path, name):
    entry = {"bytes": 1, "sha256": "0" * 64}
    edit(bucket, release.release_id, lambda manifest: manifest.update(files={name: entry, **manifest["files"]}))
    bucket.put("releases/escaped", b"x")
    with pytest.raises(ReleaseError, match="must be plain names"):
        remote.load(url)
    assert [path.name for path in tmp_path.rglob("*")] == ["cache"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format_version": 99}', b"\xff"])
def test_a_manifest_that_is_none_is_refused(bucket, release, url, cache, content):
    bucket.put(f"releases/{release.release_id}/{MANIFEST}", content)
    with pytest.raises(ReleaseError, match=rf"{url} is not usable"):
        remote.load(url)
    assert list(cache.iterdir()) == []


def test_without_a_variable_it_is_in_the_cache_of_the_user(url, tmp_path, monkeypatch):
    monkeypatch.delenv("RECSYS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert remote.load(url).path.parent == tmp_path / "xdg" / "recsys" / "releases"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert remote.load(url).path.parent == tmp_path / "home" / ".cache" / "recsys" / "releases"
