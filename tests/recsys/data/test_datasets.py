"""Public data in our own format: the conversion against a naive parse, and downloads that are not what they were."""

import hashlib
import io
import json
import random
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys.config.loading import load_config
from recsys.data import datasets
from recsys.errors import InputError

# --- sequences


def naive_parse(text: str) -> list[tuple[str, str, float]]:
    """Rows of user, item and position, the slow way."""
    rows, lengths = [], dict[str, int]()
    for line in text.split("\n"):
        user, *items = line.split() or [""]
        for item in items:
            rows.append((user, item, float(lengths.get(user, 0))))
            lengths[user] = lengths.get(user, 0) + 1
    return rows


def made_up_sequences(seed: int) -> str:
    """Users with 0 to 12 items, in no order, with blank lines between."""
    rng = random.Random(seed)  # noqa: S311 - made-up data
    users = rng.sample(range(1_000), 37)
    lines = [f"{user} " + " ".join(str(rng.randrange(60)) for _ in range(rng.randrange(13))) for user in users]
    lines.insert(20, "")
    return "\n".join(lines) + "\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "sequences.txt"
    path.write_text(made_up_sequences(seed=3))
    return path


def test_sequences_equal_a_naive_parse(tmp_path: Path, source: Path) -> None:
    datasets.sequences(source, None, tmp_path / "out")
    expected = naive_parse(source.read_text())
    interactions = pl.read_parquet(tmp_path / "out" / "interactions.parquet")
    assert interactions.columns == ["user_id", "item_id", "timestamp"]
    assert interactions.rows() == expected
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert items.rows() == [(item,) for item in sorted({item for _, item, _ in expected})]


def test_lines_of_one_user_are_joined(tmp_path: Path) -> None:
    source = tmp_path / "sequences.txt"
    source.write_text("u a b\nv c\nu d\n")
    datasets.sequences(source, None, tmp_path / "out")
    rows = pl.read_parquet(tmp_path / "out" / "interactions.parquet").rows()
    assert rows == [("u", "a", 0.0), ("u", "b", 1.0), ("v", "c", 0.0), ("u", "d", 2.0)]


def test_attributes_become_a_feature_of_all_known_items(tmp_path: Path, source: Path) -> None:
    """Items without attributes, and items with attributes that nobody touched, are in the catalog too."""
    touched = sorted({item for _, item, _ in naive_parse(source.read_text())})
    known = {touched[0]: [7, 5], touched[3]: ["5"], "new": [1], touched[5]: []}
    attributes = tmp_path / "attributes.json"
    attributes.write_text(json.dumps(known))
    checked = load_config(datasets.sequences(source, attributes, tmp_path / "out"))
    assert checked.items.multi_categorical == ("attributes",)
    rows = dict(pl.read_parquet(tmp_path / "out" / "items.parquet").rows())
    assert list(rows) == sorted([*touched, "new"])
    assert {item: values for item, values in rows.items() if values is not None} == {
        touched[0]: ["7", "5"],
        touched[3]: ["5"],
        "new": ["1"],
        touched[5]: [],
    }


def test_config_refers_to_the_written_files(tmp_path: Path, source: Path) -> None:
    path = datasets.sequences(source, None, tmp_path / "deep" / "out")
    checked = load_config(path)
    assert path == tmp_path / "deep" / "out" / "recsys.toml"
    assert Path(checked.data.interactions).is_file()
    assert checked.data.items is not None
    assert Path(checked.data.items).is_file()
    assert Path(checked.data.workspace) == tmp_path / "deep" / "out" / "workspace"


def test_repeated_blanks_separate_items_once(tmp_path: Path) -> None:
    source = tmp_path / "sequences.txt"
    source.write_text("u a  b\n")
    datasets.sequences(source, None, tmp_path / "out")
    assert pl.read_parquet(tmp_path / "out" / "interactions.parquet")["item_id"].to_list() == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (None, "sequences must be a text file"),
        (b"", "sequences must have lines like 'user item item"),
        (b"\n \nlonely\n", "sequences must have lines like 'user item item"),
        (b"u \xe9t\xe9\n", "sequences must be a text file"),
    ],
    ids=["missing", "empty", "users only", "not UTF-8"],
)
def test_rejects_invalid_sequences_without_writing_files(tmp_path: Path, content: bytes | None, rule: str) -> None:
    source = tmp_path / "sequences.txt"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(InputError, match=rule) as caught:
        datasets.sequences(source, None, tmp_path / "out")
    assert str(source) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "5",
        '{"a": 5}',
        '{"a": null}',
        pytest.param('{"a": "xyz"}'),
    ],
)
def test_rejects_invalid_attributes_without_writing_files(tmp_path: Path, source: Path, content: str) -> None:
    attributes = tmp_path / "attributes.json"
    attributes.write_text(content)
    with pytest.raises(InputError, match="attributes must be JSON like") as caught:
        datasets.sequences(source, attributes, tmp_path / "out")
    assert str(attributes) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_rejects_missing_attributes(tmp_path: Path, source: Path) -> None:
    with pytest.raises(InputError, match="attributes must be a text file") as caught:
        datasets.sequences(source, tmp_path / "none.json", tmp_path / "out")
    assert str(tmp_path / "none.json") in str(caught.value)


def test_rejects_an_output_that_is_not_a_folder(source: Path) -> None:
    with pytest.raises(InputError, match="output must be a writable folder") as caught:
        datasets.sequences(source, None, source / "out")
    assert str(source / "out") in str(caught.value)


# --- MovieLens 100k, without a network

INTER = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "196\t242\t3\t881250949\n"
    "186\t302\t3\t891717742\n"
    "196\t051\t1\t881250950\n"
)
ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "242\tKolya\t1996\tComedy\n"
    '302\tThe "Real" Thing\t1997\tCrime Film-Noir Mystery\n'
    "051\tUnknown\tV\tunknown\n"
)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel(inter: str, item: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("recbole/dataset_example/ml-100k/ml-100k.inter", inter)
        archive.writestr("recbole/dataset_example/ml-100k/ml-100k.item", item)
    return buffer.getvalue()


@pytest.fixture
def pip_fetches(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], list[list[str]]]:
    """Replace pip by a function that writes these bytes; return the commands."""

    def fetches(content: bytes) -> list[list[str]]:
        commands: list[list[str]] = []

        def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            commands.append(command)
            folder = Path(command[command.index("--dest") + 1])
            (folder / "recbole-1.2.1-py3-none-any.whl").write_bytes(content)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(datasets.subprocess, "run", run)
        return commands

    return fetches


def trust(monkeypatch: pytest.MonkeyPatch, content: bytes, inter: str, item: str) -> None:
    """Take these for the true files."""
    monkeypatch.setattr(datasets, "RECBOLE_SHA256", sha256(content))
    known = {"ml-100k.inter": sha256(inter.encode()), "ml-100k.item": sha256(item.encode())}
    monkeypatch.setattr(datasets, "MOVIELENS_SHA256", known)


def test_ratings_become_interactions_and_movies_become_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip_fetches: Callable[[bytes], list[list[str]]]
) -> None:
    trust(monkeypatch, wheel(INTER, ITEM), INTER, ITEM)
    commands = pip_fetches(wheel(INTER, ITEM))
    checked = load_config(datasets.movielens_100k(tmp_path / "out"))
    assert pl.read_parquet(checked.data.interactions).rows() == [
        ("196", "242", 881250949.0),
        ("186", "302", 891717742.0),
        ("196", "051", 881250950.0),
    ]
    assert pl.read_parquet(str(checked.data.items)).rows() == [
        ("242", "Kolya", ["Comedy"], 1996),
        ("302", 'The "Real" Thing', ["Crime", "Film-Noir", "Mystery"], 1997),
        ("051", "Unknown", ["unknown"], None),
    ]
    assert checked.items.model_dump(exclude_defaults=True) == {
        "title": "title",
        "multi_categorical": ("genres",),
        "numeric": ("year",),
    }
    groups = json.loads(Path(str(checked.data.alike)).read_text())
    assert groups["godfather"] == ["127", "187"]
    assert len(groups) == 13
    (command,) = commands
    assert command[-1] == datasets.RECBOLE
    assert "--no-deps" in command


def test_rejects_a_wheel_with_another_checksum(tmp_path: Path, pip_fetches: Callable[[bytes], list[list[str]]]) -> None:
    tampered = wheel(INTER, ITEM)
    pip_fetches(tampered)
    with pytest.raises(InputError, match=r"wheel of recbole==1\.2\.1 must have the SHA-256") as caught:
        datasets.movielens_100k(tmp_path / "out")
    assert datasets.RECBOLE_SHA256 in str(caught.value)
    assert sha256(tampered) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["ml-100k.inter", "ml-100k.item"])
def test_rejects_a_file_in_the_wheel_with_another_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip_fetches: Callable[[bytes], list[list[str]]], name: str
) -> None:
    tampered = {"ml-100k.inter": INTER, "ml-100k.item": ITEM}
    tampered[name] += "1\t2\t3\t4\n"
    content = wheel(*tampered.values())
    trust(monkeypatch, content, INTER, ITEM)
    pip_fetches(content)
    with pytest.raises(InputError, match=f"{name} must have the SHA-256") as caught:
        datasets.movielens_100k(tmp_path / "out")
    assert datasets.MOVIELENS_SHA256[name] in str(caught.value)
    assert sha256(tampered[name].encode()) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (subprocess.CalledProcessError(1, "pip", stderr="ERROR: no matching distribution\n"), "no matching distribut"),
        (subprocess.TimeoutExpired("pip", 300), "no response in 300 s"),
    ],
    ids=["fails", "hangs"],
)
def test_failed_download_reports_the_output_of_pip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def run(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets.subprocess, "run", run)
    with pytest.raises(InputError, match=r"recbole==1\.2\.1 must be downloadable with pip") as caught:
        datasets.movielens_100k(tmp_path / "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()
