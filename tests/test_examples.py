"""Examples for schedulers: each is parsed like its scheduler does, and its command is run with `--dry-run`.

Airflow is not installed for the tests; a stub records the arguments of the DAG file.
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
    """Stub of `airflow.DAG` with its arguments and the arguments of its operators."""

    instances: ClassVar[list[Dag]] = []

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.tasks = arguments, list[dict[str, Any]]()
        self.instances.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def operator(**arguments: Any) -> None:
    Dag.instances[-1].tasks.append(arguments)


@pytest.fixture
def dag(monkeypatch: pytest.MonkeyPatch) -> Dag:
    sdk, bash = "airflow.sdk", "airflow.providers.standard.operators.bash"
    parents = ("airflow", "airflow.providers", "airflow.providers.standard", "airflow.providers.standard.operators")
    modules = {name: ModuleType(name) for name in (*parents, sdk, bash)}
    modules[sdk].DAG, modules[bash].BashOperator = Dag, operator  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Dag, "instances", [])
    runpy.run_path(str(EXAMPLES / "airflow" / "recsys_nightly.py"))
    (dag,) = Dag.instances
    return dag


def dry_run(program: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> dict[str, Any]:
    """Return the plan of the command of an example, for the test world."""
    monkeypatch.setenv("RECSYS_CONFIG", str(world.write(folder)))
    assert command[0] == "recsys"
    outcome = program(*command[1:], "--dry-run")
    assert outcome.exit_code == 0, outcome.err
    plan: dict[str, Any] = json.loads(outcome.out)
    return plan


def test_airflow_dag_starts_one_nightly_run_without_retries(
    dag: Dag, program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dag.arguments["dag_id"] == "recsys_nightly"
    assert (dag.arguments["max_active_runs"], dag.arguments["catchup"]) == (1, False)
    (task,) = dag.tasks
    assert task["retries"] == 0
    assert "RECSYS_CONFIG" in task["env"]
    command = task["bash_command"].replace("{{ data_interval_end.isoformat() }}", "2026-01-02T02:30:00+00:00")
    plan = dry_run(program, tmp_path, monkeypatch, shlex.split(command))
    assert plan["as_of"].startswith("2026-01-02T02:30")


def test_cron_entry_starts_a_nightly_run(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (EXAMPLES / "cron" / "recsys").read_text().splitlines()
    (line,) = [line for line in lines if re.match(r"[\d*]", line)]
    *schedule, user, command = line.split(maxsplit=6)
    assert (len(schedule), user) == (5, "recsys")
    words = shlex.split(command.partition(">>")[0])
    dry_run(program, tmp_path, monkeypatch, words[words.index("recsys") :])
    assert any(re.fullmatch(r"RECSYS_CONFIG=\S+", line) for line in lines)


def test_systemd_service_starts_a_nightly_run(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = (EXAMPLES / "systemd" / "recsys-nightly.service").read_text()
    (command,) = re.findall(r"^ExecStart=/usr/bin/env (.*)$", service, re.MULTILINE)
    dry_run(program, tmp_path, monkeypatch, shlex.split(command))
    timer = (EXAMPLES / "systemd" / "recsys-nightly.timer").read_text()
    assert re.search(r"^OnCalendar=\S", timer, re.MULTILINE)


def test_systemd_units_are_valid() -> None:
    verifier = shutil.which("systemd-analyze")
    if verifier is None:
        pytest.skip("systemd-analyze is not installed")
    units = [EXAMPLES / "systemd" / f"recsys-nightly.{kind}" for kind in ("service", "timer")]
    done = subprocess.run([verifier, "verify", *units], capture_output=True, text=True, check=False)
    assert not [line for line in done.stderr.splitlines() if "recsys-nightly" in line], done.stderr


def test_kubernetes_job_starts_a_nightly_run_without_retries_of_rejections(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = yaml.safe_load((EXAMPLES / "kubernetes" / "cronjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    job_spec = job["spec"]["jobTemplate"]["spec"]
    (container,) = job_spec["template"]["spec"]["containers"]
    (rule,) = job_spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [1, 2]}
    assert job_spec["template"]["spec"]["restartPolicy"] == "Never"
    volumes = {volume["name"] for volume in job_spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert "RECSYS_CONFIG" in {variable["name"] for variable in container["env"]}
    dry_run(program, tmp_path, monkeypatch, container["args"])
