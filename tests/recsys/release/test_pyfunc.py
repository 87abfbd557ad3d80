"""The registered version is an MLflow model that returns the results of the release."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from recsys import Release
from recsys.config.loading import parse_config
from recsys.errors import InputError, UnknownItemError
from recsys.release.mlflow_registry import Tracker
from recsys.release.pyfunc import DEFAULT_K, Similar
from recsys.release.versions import Version
from recsys.testing import program
from tests.e2e import tracking_server


class Frame:
    """The part of the interface of a pandas data frame that the model uses."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self.rows = rows

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return list(self.rows)


@pytest.fixture
def release(write_release: Any) -> Release:
    return Release.load(write_release([f"item {number}" for number in range(12)]))


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(parse_config({"data": {"interactions": "log.csv", "workspace": str(tmp_path / "workspace")}}))


@pytest.fixture
def version(tracker: Tracker, release: Release) -> Version:
    return tracker.register(tracker.start_run("abc", "snapshot"), release)


def test_model_returns_the_results_of_the_release(release: Release) -> None:
    model = Similar(release)
    answers = model.predict(Frame({"item_id": "item 3", "k": 4}, {"item_id": "item 5", "k": float("nan")}))
    assert answers == [release.similar("item 3", 4).to_dict(), release.similar("item 5", DEFAULT_K).to_dict()]
    assert model.predict(Frame({"item_id": "item 5"})) == answers[1:]
    rows = [{"item_id": "item 5", "sense": sense} for sense in ("next", "similar", float("nan"), None)]
    assert [answer["sense"] for answer in model.predict(Frame(*rows))] == ["next", "similar", "similar", "similar"]
    with pytest.raises(InputError, match=r"sense must be one of similar, next. Received: 'alike'"):
        model.predict(Frame({"item_id": "item 5", "sense": "alike"}))
    with pytest.raises(UnknownItemError, match="unknown"):
        model.predict(Frame({"item_id": "unknown"}))


@pytest.mark.slow
def test_mlflow_models_predict_returns_the_results_of_the_release(
    tracker: Tracker, version: Version, release: Release, tmp_path: Path
) -> None:
    queries = {"dataframe_records": [{"item_id": "item 3", "k": 4}, {"item_id": "item 7", "k": 2}]}
    (tmp_path / "queries.json").write_text(json.dumps(queries))
    command = [
        *(
            sys.executable,
            "-m",
            "mlflow",
            "models",
            "predict",
            "--model-uri",
            f"models:/{tracker.model}/{version.number}",
        ),
        *("--input-path", str(tmp_path / "queries.json"), "--content-type", "json", "--env-manager", "local"),
    ]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracker.uri}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert process.returncode == 0, process.stderr
    predictions = json.loads(process.stdout[process.stdout.index("{") :])["predictions"]
    assert predictions == [release.similar("item 3", 4).to_dict(), release.similar("item 7", 2).to_dict()]


def test_version_has_a_signature_and_an_example(tracker: Tracker, version: Version, release: Release) -> None:
    from mlflow.models import get_model_info

    info = get_model_info(f"models:/{tracker.model}/{version.number}")
    assert info.signature is not None
    assert info.signature.inputs.input_names() == ["item_id", "k", "sense"]
    result = Similar(release).predict(Frame({"item_id": "item 3"}))[0]
    outputs = {column["name"]: column for column in info.signature.outputs.to_dict()}
    assert outputs.keys() == result.keys()
    assert outputs["neighbors"]["items"]["properties"].keys() == result["neighbors"][0].keys()
    example = json.loads(
        tracker.read_artifact(tracker.start_run("abc", "snapshot"), "release/input_example.json") or ""
    )
    assert example == {"item_id": ["item 0", "item 1"], "k": [5, 5]}


def test_fetched_release_has_only_the_files_of_the_release(
    tracker: Tracker, version: Version, release: Release, tmp_path: Path
) -> None:
    fetched = tracker.fetch(version, tmp_path / "elsewhere")
    assert {path.name for path in fetched.iterdir()} == {path.name for path in release.path.iterdir()}


@pytest.mark.slow
def test_mlflow_models_serve_returns_the_output_of_the_command_line(
    tracker: Tracker, version: Version, release: Release
) -> None:
    uri = f"models:/{tracker.model}/{version.number}"
    options = ("--model-uri", uri, "--env-manager", "local")
    with tracking_server.started("models", "serve", *options, MLFLOW_TRACKING_URI=tracker.uri) as url:

        def invoke(*rows: dict[str, Any]) -> httpx.Response:
            return httpx.post(f"{url}/invocations", json={"dataframe_records": rows}, timeout=60)

        explicit_k = invoke({"item_id": "item 3", "k": 4}, {"item_id": "item 7", "k": 2})
        default_k = invoke({"item_id": "item 7"})
        missing = invoke({"item_id": "unknown"})

    def similar(*arguments: object) -> Any:
        return json.loads(program.run("similar", *arguments, "--release", release.path, "--json").stdout)

    assert explicit_k.json() == {"predictions": [similar("item 3", "--k", 4), similar("item 7", "--k", 2)]}
    assert default_k.json() == {"predictions": [similar("item 7")]}
    assert missing.is_error
    assert "unknown" in missing.text
