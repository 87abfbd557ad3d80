"""What tests of several packages share: the program run in this process, and a release made of chosen vectors."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest


class Outcome(NamedTuple):
    """What a command did."""

    exit_code: int
    out: str
    err: str


Program = Callable[..., Outcome]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """`recsys ARGUMENTS…` in this process: that saves the imports of a new one."""
    from recsys import cli

    monkeypatch.setenv("COLUMNS", "300")  # so that no message is wrapped
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("RECSYS_CONFIG", raising=False)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["recsys", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        code = caught.value.code
        return Outcome(0 if code is None else int(code), *capsys.readouterr())

    return run


@pytest.fixture
def write_release(tmp_path: Path) -> Callable[..., Path]:
    """`release_writer` into a folder of the test."""
    return release_writer(tmp_path)


def release_writer(tmp_path: Path) -> Callable[..., Path]:
    """A whole release of items with random vectors; tower and features are stand-ins that no look-up opens.

    `columns` are further ones of the catalogue, or `interactions` instead of 1.
    Its calibration is even at a similarity of 0.1 and no threshold reaches a precision of 0.95.
    """
    from recsys import calibration, embeddings, index, release
    from recsys.calibration import Calibration, Estimate, Measured, Threshold
    from recsys.catalogue import Catalogue
    from recsys.config import Config, DataConfig, IndexConfig

    share = Estimate(value=0.75, low=0.5, high=0.875)
    measured = Measured(precision=share, recall=share, false_positive_rate=share, accuracy=share)
    thresholds = [("probability", 0.5, 0.1), ("precision", 0.9, 0.5), ("false_positive_rate", 0.05, 0.625)]
    known = Calibration(
        similarities=(-0.5, 0.0, 0.5),
        probabilities=(0.125, 0.375, 1.0),
        fitted_pairs=40,
        measured_pairs=42,
        expected_calibration_error=share,
        auc=0.875,
        thresholds=(
            *(Threshold(rule=r, wanted=w, similarity=s, measured=measured) for r, w, s in thresholds),
            Threshold(rule="precision", wanted=0.95, similarity=None, measured=None),
        ),
    )

    def write(item_ids: Sequence[str], *, calibrated: bool = True, **columns: object) -> Path:
        rng = np.random.default_rng(len(item_ids))
        vectors = rng.normal(size=(len(item_ids), 5)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        frame = pl.DataFrame({"item_id": item_ids, "title": [f"Title of {item}" for item in item_ids]})
        catalogue = Catalogue(frame.with_columns(**{"interactions": pl.lit(1, pl.Int64), **columns}))
        sources = {name: tmp_path / f"source-{name}" for name in release.FILES}
        catalogue.save(sources[release.CATALOGUE])
        embeddings.save(vectors, tmp_path / "vectors.npy")
        (tmp_path / "vectors.npy").rename(sources[release.EMBEDDINGS])
        built = index.build(vectors, IndexConfig(n_trees=10), sources[release.INDEX])
        calibration.save(known if calibrated else None, sources[release.CALIBRATION], "too few held-out pairs")
        for stand_in in (release.TOWER, release.FEATURES, release.EVALUATION):
            sources[stand_in].write_text("{}")
        manifest = {
            "release_id": "0123456789ab",
            "created_at": "2024-01-31T02:00:00+00:00",
            "num_items": len(item_ids),
            "dimension": vectors.shape[1],
            "metric": "angular",
            "distance": "cosine",
            "n_trees": 10,
            "seed": 1,
            "n_jobs": 1,
            "search_k": built.search_k,
            "recall_k": 20,
            "index_recall": 1.0,
            "recency": 0.5,
            "catalogue_fingerprint": catalogue.fingerprint,
            "data_snapshot": "0" * 64,
            "code_version": "test",
            "parent_release": None,
            "mlflow_run": None,
            "config": Config(data=DataConfig(interactions="log.csv")).shaping(),
        }
        return release.write(sources, manifest, tmp_path / "releases")

    return write


@pytest.fixture(scope="session")
def movielens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MovieLens 100k and its config; skips where it cannot be fetched."""
    from recsys import datasets
    from recsys.errors import InputError

    try:
        return datasets.movielens_100k(tmp_path_factory.mktemp("movielens")).parent
    except InputError as error:
        pytest.skip(str(error))
