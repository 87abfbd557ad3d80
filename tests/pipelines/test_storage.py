"""Jobs and commands with object storage: results equal those with files, and errors are one line."""

import gzip
import json
import random
from urllib.parse import urlparse

import polars as pl
import pytest

from pipelines.context.run_context import RunContext
from pipelines.prepare import stage as prepare
from recsys import Release
from recsys.config.loading import parse_config
from recsys.errors import InputError
from recsys.release import remote
from tests import GOLDEN_RELEASES, memory_mb
from tests.pipelines.servers import refusing

GOLDEN = GOLDEN_RELEASES / "v2"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECSYS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path):
    """A folder with films and ratings in files of all formats, with some malformed rows."""
    rng = random.Random(5)  # noqa: S311 - synthetic data
    rows = [
        {"user_id": f"{rng.randrange(30)}", "item_id": f"{int(rng.paretovariate(0.6)) % 40}", "timestamp": 8e8 + n}
        for n in range(900)
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    pl.DataFrame(rows[:300]).write_parquet(folder / "log-1.parquet", row_group_size=70)
    csv = pl.DataFrame(rows[300:600]).write_csv().replace("\n", "\nshort\n", 3)
    (folder / "log-2.csv.gz").write_bytes(gzip.compress(csv.encode()))
    lines = [json.dumps(row) for row in rows[600:]]
    (folder / "log-3.jsonl").write_text("\n".join([*lines[:100], "{", *lines[100:]]))
    films = [{"item_id": f"{n}", "title": f"Film {n} é", "genres": "Drama|Comedy"} for n in range(38)]
    pl.DataFrame(films).write_csv(folder / "items.csv")
    (folder / "labeled.csv").write_text("item_a,item_b,same\n" + "".join(f"{n},{n + 1},{n % 2}\n" for n in range(20)))
    return folder


def prepare_run(source, workspace, profile="local"):
    context = RunContext.from_config(
        parse_config(
            {
                "data": {
                    "interactions": f"{source}/log-*",
                    "items": f"{source}/items.csv",
                    "labeled_pairs": f"{source}/labeled.*",
                    "workspace": str(workspace),
                },
                "items": {"title": "title", "multi_categorical": ["genres"]},
                "prepare": {"max_dead_letter_ratio": 0.2},
                "resources": {"memory_mb": memory_mb(rows=64)},
                "beam": {"profile": profile, "workers": 3},
            }
        )
    )
    return (
        context.run.run_id,
        prepare.prepare(context.config, context.run, context.inputs, context.progress),
        context.run.folder / "prepare",
    )


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["local", "local-threads"])
def test_prepare_gives_the_same_result_from_object_storage_and_from_files(data, bucket, tmp_path, profile):
    """The run id, the row account and the tables are equal; dead letters have the URL of their file."""
    for path in data.iterdir():
        bucket.put(f"in/{path.name}", path.read_bytes())
    run_id, manifest, local_folder = prepare_run(data, tmp_path / "local")
    assert prepare_run(f"{bucket.url}/in", tmp_path / "remote", profile)[:2] == (run_id, manifest)
    remote_folder = tmp_path / "remote" / "runs" / run_id / "prepare"
    tables = ["catalog.parquet", "labeled_pairs.parquet", *(f"sequences/{name}" for name in manifest["sequences"])]
    for name in [*tables, *(f"pairs/{name}" for name in manifest["pairs"])]:
        assert pl.read_parquet(remote_folder / name).equals(pl.read_parquet(local_folder / name)), name
    dead_letters = [pl.read_parquet(folder / "dead_letters.parquet") for folder in (local_folder, remote_folder)]
    assert dead_letters[0].drop("source").equals(dead_letters[1].drop("source"))
    assert dead_letters[0].height > 4
    urls = dead_letters[0]["source"].str.replace(str(data), f"{bucket.url}/in", literal=True)
    assert urls.to_list() == dead_letters[1]["source"].to_list()


def test_warm_start_from_object_storage_gives_the_run_id_of_a_local_one(data, bucket, tmp_path):
    url = remote.upload(Release.load(GOLDEN), f"{bucket.url}/releases")

    def run_id(warm_start):
        settings = {"interactions": str(data / "log-*"), "workspace": str(tmp_path / "ws"), **warm_start}
        return RunContext.from_config(parse_config({"data": settings})).run.run_id

    assert run_id({"warm_start": url}) == run_id({"warm_start": str(GOLDEN)}) != run_id({})
    with pytest.raises(InputError, match=r"data\.warm_start must be the folder of a release"):
        run_id({"warm_start": f"{bucket.url}/releases"})


# --- command line


@pytest.fixture
def config(tmp_path):
    (tmp_path / "recsys.toml").write_text('[data]\ninteractions = "none.csv"\n')
    return tmp_path / "recsys.toml"


def assert_rejected(outcome, *parts, code=2):
    assert (outcome.exit_code, outcome.out) == (code, "")
    assert len(outcome.err.splitlines()) == 1
    assert outcome.err.startswith("error: ")
    for part in parts:
        assert part in outcome.err


def test_missing_input_is_rejected_without_revealing_passwords(program, bucket, config):
    bucket.put("log.csv", b"user_id,item_id,timestamp\n")
    for url, part in {
        f"{bucket.url}/log-*.csv": "data.interactions must be a file, or a glob that matches files",
        "s3://no-such-bucket/*.csv": "does not exist",
        "s3://key:secret@bucket/*.csv": "a URL must not contain a password. Received: s3://…@bucket/*.csv",
    }.items():
        outcome = program("prepare", "--config", config, "--set", f"data.interactions={url}")
        assert_rejected(outcome, part)
        assert "secret" not in outcome.err


def test_inaccessible_input_is_rejected(program, bucket, config, s3_server):
    bucket.put("log.csv", b"user_id,item_id,timestamp\n")
    with refusing(s3_server):
        outcome = program("prepare", "--config", config, "--set", f"data.interactions={bucket.url}/log.csv")
    assert_rejected(outcome, f"{bucket.url}/log.csv must exist and be accessible")


@pytest.mark.parametrize(("name", "content"), [("log.csv", b""), ("log.parquet", b"no parquet")])
def test_empty_or_invalid_object_is_rejected_by_its_url(program, bucket, config, name, content):
    bucket.put(name, content)
    outcome = program("prepare", "--config", config, "--set", f"data.interactions={bucket.url}/{name}")
    assert_rejected(outcome, f"{bucket.url}/{name} must")


def test_commands_accept_the_url_of_a_release(program, bucket):
    url = remote.upload(Release.load(GOLDEN), f"{bucket.url}/releases")
    for command in (["similar", "item-1-1", "--json"], ["verify", "item-1-1", "item-1-2", "--json"]):
        local, by_url = (program(*command, "--release", release) for release in (GOLDEN, url))
        assert (by_url.exit_code, by_url.out, by_url.err) == (0, local.out, "")
    assert "is undamaged" in program("releases", "check", url).out
    assert json.loads(program("releases", "show", url, "--json").out)["release_id"] == url.rpartition("/")[2]


def test_export_between_urls_equals_export_between_files(program, bucket, config, tmp_path):
    url = remote.upload(Release.load(GOLDEN), f"{bucket.url}/releases")
    for name in ("neighbors", "neighbors.jsonl"):
        local, remote_url = tmp_path / name, f"{bucket.url}/out/{name}"
        assert program("export", "--config", config, "--release", GOLDEN, "--to", local).exit_code == 0
        outcome = program("export", "--config", config, "--release", url, "--to", remote_url)
        assert outcome.exit_code == 0, outcome.err
        assert outcome.out == f"Exported 980 neighbors of 49 items of release 50049176ddac to {remote_url}\n"
        for path in [path for path in tmp_path.glob(f"{name}/**/*") if path.is_file()] or [local]:
            assert bucket.get(f"out/{path.relative_to(tmp_path)}") == path.read_bytes()


def test_incomplete_release_is_rejected_by_its_url(program, bucket):
    url = remote.upload(Release.load(GOLDEN), f"{bucket.url}/releases")
    bucket.remove(f"{urlparse(url).path[1:]}/index.ann")
    outcome = program("similar", "item-1-1", "--release", url)
    assert_rejected(outcome, f"{url} is not usable: bytes of index.ann must be", code=1)
