"""A nightly run with data and releases in object storage, and a service that has only the URL of the release."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from recsys.index.shards import INDEX_FILE
from recsys.release.formats import SHARED_FILES, SPACE_FILES
from recsys.testing import program, world

pytestmark = pytest.mark.e2e


def test_release_of_a_run_in_object_storage_is_served_from_there(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world.write(tmp_path)
    settings = []
    for key, name in re.findall(r'^(interactions|items) = "(.*)"$', config.read_text(), re.MULTILINE):
        bucket.put(f"in/{name}", (tmp_path / name).read_bytes())
        (tmp_path / name).unlink()
        settings += ["--set", f"data.{key}={bucket.url}/in/{name}"]
    assert len(settings) == 4
    settings += ["--set", f"data.releases={bucket.url}/releases"]

    done = program.run("nightly", "--config", config, *settings, "--json")
    assert done.returncode == 0, done.stderr
    release_id = json.loads(done.stdout)["release_id"]
    prefix = f"releases/{release_id}/"
    uploaded = {name.removeprefix(prefix): bucket.get(name) for name in bucket.names() if name.startswith(prefix)}
    release = Path(json.loads(done.stdout)["path"])
    files = [path for path in release.rglob("*") if path.is_file()]
    assert uploaded == {path.relative_to(release).as_posix(): path.read_bytes() for path in files}
    in_space = {f"next/{name}" for name in (*SPACE_FILES, INDEX_FILE)}
    assert uploaded.keys() == {*SHARED_FILES, *in_space, "manifest.json"}

    done = program.run("publish", "--config", config, *settings, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["released_to"] == f"{bucket.url}/releases/{release_id}"

    expected = program.run("similar", "item-3-1", "--k", 4, "--release", release, "--json").stdout
    shutil.rmtree(config.parent / "workspace")
    config.unlink()
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))
    process = program.start("serve", "--release", f"{bucket.url}/releases/{release_id}", "--port", 0)
    try:
        assert process.stderr is not None
        match = next(match for line in process.stderr if (match := re.search(r"running on (http://[\d.:]+)", line)))
        body = httpx.get(f"{match.group(1)}/v1/items/item-3-1/similar", params={"k": 4}).json()
    finally:
        process.terminate()
        process.communicate(timeout=program.TIMEOUT_S)
    del body["next_cursor"]  # the command line has no pages
    assert body == json.loads(expected)
