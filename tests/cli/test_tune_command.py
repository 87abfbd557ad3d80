"""`recsys tune`: its text and JSON output, and its errors. A stub replaces training."""

import json
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.context.overrides import with_settings
from recsys.config.loading import load_config
from recsys.config.sections import TrainConfig

CONFIG = """
[data]
interactions = "log.csv"

[train]
passes = 2

[tune]
trials = 3

[tune.ranges]
"train.temperature" = {low = 0.2, high = 0.4, log = true}
"train.mining" = ["hard", "soft_margin"]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rows = ["user_id,item_id,timestamp", *(f"u{n % 5},i{n % 7},{n}" for n in range(40))]
    (tmp_path / "log.csv").write_text("\n".join(rows))
    (tmp_path / "recsys.toml").write_text(CONFIG)
    return tmp_path / "recsys.toml"


@pytest.fixture
def temperatures(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The temperatures of the trials; a higher temperature has a better score."""
    from pipelines.tuning import objectives

    temperatures: list[float] = []

    def fit_tower(config: Any, _: Any, plan: Any, on_pass: Any) -> Any:
        temperatures.append(config.train.temperature)
        for number in range(1, plan.phases[0].passes + 1):
            on_pass("pairs", number, {"loss": 1.0, "validation_score": 0.1})
        return SimpleNamespace(embeddings=temperatures[-1])

    def measure_validation(_: Any, __: Any, value: float) -> dict[str, Any]:
        return {"validation": {"last_item": {"ndcg_at_20": value}, "history": {"ndcg_at_20": value}}}

    monkeypatch.setattr(objectives, "fit_tower", fit_tower)
    monkeypatch.setattr(objectives, "measure_validation", measure_validation)
    return temperatures


@pytest.mark.slow
def test_json_output_is_one_object_and_text_output_is_toml(
    config: Path, program: Any, temperatures: list[float], tmp_path: Path
) -> None:
    outcome = program("tune", "--config", config, "--json")
    assert outcome.exit_code == 0
    assert len(outcome.out.splitlines()) == 1
    result = json.loads(outcome.out)
    assert set(result) == {"id", "sense", "trials", "best_value", "base_value", "settings", "path", "seconds"}
    assert (result["trials"], result["base_value"], result["best_value"]) == (3, 0.1, max(temperatures))
    assert temperatures[0] == 0.1
    assert result["path"] == str(tmp_path / "workspace" / "tuning" / result["id"] / "best.toml")
    lines = [line for line in outcome.err.splitlines() if line.startswith("  trial")]
    assert [line.split()[1] for line in lines] == ["0", "1", "2"]
    assert "0.1000, best 0.1000 of trial 0" in lines[0]
    assert all(line.endswith(" s left") for line in lines)

    table = program("tune", "--config", config)
    assert (table.exit_code, table.err, len(temperatures)) == (0, "", 3)
    assert "validation NDCG@20 0.1000 before" in table.out
    assert result["path"] in table.out
    printed, written = tomllib.loads(table.out), tomllib.loads(Path(result["path"]).read_text())
    assert printed == written
    assert printed["train"]["temperature"] == max(temperatures)

    config_file = tmp_path / "pasted.toml"
    config_file.write_text(f'data.interactions = "log.csv"\n{table.out}')
    base = load_config(tmp_path / "recsys.toml")
    unset = {"train.passes": TrainConfig().passes}  # set in the base config only
    assert load_config(config_file).train == with_settings(base, {**result["settings"], **unset}).train


def test_tune_stops_after_the_given_minutes(config: Path, program: Any, temperatures: list[float]) -> None:
    outcome = program("tune", "--config", config, "--minutes", 0, "--json")
    assert outcome[:2] == (2, "")
    assert "tune.minutes: should be greater than 0" in outcome.err
    outcome = program("tune", "--config", config, "--minutes", 1e-9, "--json")
    assert (outcome.exit_code, json.loads(outcome.out)["trials"], temperatures) == (0, 1, [0.1])


def test_invalid_ranges_are_rejected_before_the_first_trial(
    config: Path, program: Any, temperatures: list[float]
) -> None:
    with config.open("a") as file:
        file.write('"train.temprature" = [0.1]\n"index.n_trees" = [10]\n')
    outcome = program("tune", "--config", config)
    assert outcome[:2] == (2, "")
    assert "Did you mean 'train.temperature'?" in outcome.err
    assert "Received: index.n_trees" in outcome.err
    assert "Traceback" not in outcome.err
    assert temperatures == []


def test_missing_optuna_names_the_extra(config: Path, program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    outcome = program("tune", "--config", config)
    assert outcome[:2] == (2, "")
    assert outcome.err == "error: tuning requires optuna, which is not installed. Install recsys[tune].\n"


def test_help_does_not_need_optuna(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    outcome = program("tune", "--help")
    assert outcome.exit_code == 0
    assert "--minutes" in outcome.out
