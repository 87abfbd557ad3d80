"""The examples of how a night is started: each is read as its scheduler reads it, and what it starts is started.

Airflow is not installed for the tests: a stand-in takes what the DAG file gives to it.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Self

import pytest
import yaml

from recsys.testing import world
from tests import ROOT

EXAMPLES = ROOT / "examples"


class Dag:
    """What `airflow.DAG` takes; the operators that are made within it."""

    made: ClassVar[list[Dag]] = []

    def __init__(self, **given: Any) -> None:
        self.given, self.tasks = given, list[dict[str, Any]]()
        self.made.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def operator(**given: Any) -> None:
    Dag.made[-1].tasks.append(given)


@pytest.fixture
def dag(monkeypatch: pytest.MonkeyPatch) -> Dag:
    sdk, bash = "airflow.sdk", "airflow.providers.standard.operators.bash"
    parents = ("airflow", "airflow.providers", "airflow.providers.standard", "airflow.providers.standard.operators")
    modules = {name: ModuleType(name) for name in (*parents, sdk, bash)}
    modules[sdk].DAG, modules[bash].BashOperator = Dag, operator  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Dag, "made", [])
    runpy.run_path(str(EXAMPLES / "airflow" / "recsys_nightly.py"))
    (made,) = Dag.made
    return made


def would_run(program: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> dict[str, Any]:
    """What the command of an example would do, on the made-up world."""
    monkeypatch.setenv("RECSYS_CONFIG", str(world.write(folder)))
    assert command[0] == "recsys"
    outcome = program(*command[1:], "--dry-run")
    assert outcome.exit_code == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def test_airflow(dag: Dag, program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dag.given["dag_id"] == "recsys_nightly"
    assert (dag.given["max_active_runs"], dag.given["catchup"]) == (1, False)
    (task,) = dag.tasks
    assert task["retries"] == 0
    assert "RECSYS_CONFIG" in task["env"]
    command = task["bash_command"].replace("{{ data_interval_end.isoformat() }}", "2026-01-02T02:30:00+00:00")
    planned = would_run(program, tmp_path, monkeypatch, shlex.split(command))
    assert planned["as_of"].startswith("2026-01-02T02:30")


def test_cron(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (EXAMPLES / "cron" / "recsys").read_text().splitlines()
    (line,) = [line for line in lines if re.match(r"[\d*]", line)]
    *when, user, command = line.split(maxsplit=6)
    assert (len(when), user) == (5, "recsys")
    words = shlex.split(command.partition(">>")[0])
    would_run(program, tmp_path, monkeypatch, words[words.index("recsys") :])
    assert any(re.fullmatch(r"RECSYS_CONFIG=\S+", line) for line in lines)


def test_systemd(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = (EXAMPLES / "systemd" / "recsys-nightly.service").read_text()
    (command,) = re.findall(r"^ExecStart=/usr/bin/env (.*)$", service, re.MULTILINE)
    would_run(program, tmp_path, monkeypatch, shlex.split(command))
    timer = (EXAMPLES / "systemd" / "recsys-nightly.timer").read_text()
    assert re.search(r"^OnCalendar=\S", timer, re.MULTILINE)


def test_systemd_takes_both_units() -> None:
    verifier = shutil.which("systemd-analyze")
    if verifier is None:
        pytest.skip("systemd-analyze is not installed")
    units = [EXAMPLES / "systemd" / f"recsys-nightly.{kind}" for kind in ("service", "timer")]
    done = subprocess.run([verifier, "verify", *units], capture_output=True, text=True, check=False)
    assert not [line for line in done.stderr.splitlines() if "recsys-nightly" in line], done.stderr


def test_kubernetes(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = yaml.safe_load((EXAMPLES / "kubernetes" / "cronjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    work = job["spec"]["jobTemplate"]["spec"]
    (container,) = work["template"]["spec"]["containers"]
    (rule,) = work["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [1, 2]}
    assert work["template"]["spec"]["restartPolicy"] == "Never"
    volumes = {volume["name"] for volume in work["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert "RECSYS_CONFIG" in {variable["name"] for variable in container["env"]}
    would_run(program, tmp_path, monkeypatch, container["args"])
