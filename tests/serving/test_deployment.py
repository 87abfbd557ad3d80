"""The container image and the deployment examples: their commands, probes and settings are run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from recsys.config.loading import load_config
from recsys.testing import program
from recsys.testing.releases import WriteRelease
from recsys.testing.service_process import Service
from serving.middleware import api_keys
from serving.workers.supervisor import SHUTDOWN_TIMEOUT_S
from tests import ROOT

(UNIT,) = (ROOT / "examples").rglob("recsys-serve.service")


def manifests() -> dict[str, dict[str, Any]]:
    """Return the Kubernetes objects of the service, by `Kind/name`."""
    for path in (ROOT / "examples").rglob("*.yaml"):
        objects = list(yaml.safe_load_all(path.read_text()))
        if any(item["kind"] == "StatefulSet" for item in objects):
            return {f"{item['kind']}/{item['metadata']['name']}": item for item in objects}
    raise AssertionError


def instructions(name: str) -> list[str]:
    """Return the arguments of all instructions with a name in the container file."""
    lines = (ROOT / "runners" / "serve.Dockerfile").read_text().splitlines()
    return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]


def test_command_config_and_probes_of_the_pod_work(tmp_path: Path, write_release: WriteRelease) -> None:
    """Only the folders and URLs are replaced by local ones."""
    objects = manifests()
    pod = objects["StatefulSet/recsys"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    write_release(["a", "b", "c"], release_id="first")
    _, key = api_keys.create_key("any", "read")
    (tmp_path / "keys.txt").write_text(key.line)
    local_paths = {"/data": str(tmp_path), "/keys": str(tmp_path), "/config": str(tmp_path)}
    local_paths["s3://BUCKET/releases"] = str(tmp_path / "releases")

    def localize(text: str) -> str:
        for path, local_path in local_paths.items():
            text = re.sub(rf"(?<![\w/]){path}", local_path, text)
        return text

    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/keys", "/config"}
    (entry,) = (json.loads(arguments) for arguments in instructions("ENTRYPOINT"))
    command = [*entry, *map(localize, container["args"])]
    assert command[:4] == ["recsys", "serve", "--host", "0.0.0.0"]  # noqa: S104 - in a container
    service = Service(tmp_path)
    service.config.write_text(localize(objects["ConfigMap/recsys"]["data"]["recsys.toml"]))
    assert str(service.config) in command
    service.source = ("--release", command[command.index("--release") + 1])
    config = load_config(service.config)
    service.start()
    try:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            request = container[probe]["httpGet"]
            assert request["port"] == "http"
            assert service.get(request["path"]).status_code == 200
        assert service.get("/v1/release").status_code == 401, "the API keys of the file are required"
        assert len(service.workers()) == config.serve.workers
    finally:
        service.close()
    (port,) = container["ports"]
    assert port == {"name": "http", "containerPort": config.serve.port}
    assert instructions("EXPOSE") == [str(config.serve.port)]
    assert pod["spec"]["terminationGracePeriodSeconds"] > SHUTDOWN_TIMEOUT_S + 5
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert instructions("USER")[-1].isdecimal(), "Kubernetes cannot verify that a user name is not root"


def test_kubernetes_objects_refer_to_each_other() -> None:
    objects = manifests()
    labels = objects["StatefulSet/recsys"]["spec"]["template"]["metadata"]["labels"]
    spec = objects["StatefulSet/recsys"]["spec"]
    assert spec["selector"]["matchLabels"] == labels
    assert spec["replicas"] > objects["PodDisruptionBudget/recsys"]["spec"]["minAvailable"]
    assert objects["PodDisruptionBudget/recsys"]["spec"]["selector"]["matchLabels"] == labels
    services = [service for name, service in objects.items() if name.startswith("Service/")]
    assert f"Service/{spec['serviceName']}" in objects
    assert all(service["spec"]["selector"] == labels for service in services)
    pod = spec["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]} | {
        claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]
    }
    assert {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]} == volumes


def test_systemd_unit_runs_a_valid_command_and_waits_for_the_shutdown() -> None:
    settings = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))
    _, *arguments = shlex.split(settings["ExecStart"])
    process = program.run(*arguments)
    assert process.returncode == 2
    assert "/etc/recsys/recsys.toml" in process.stderr, "only the config is missing"
    assert int(settings["TimeoutStopSec"]) > SHUTDOWN_TIMEOUT_S + 5


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    verifier = shutil.which("systemd-analyze")
    if verifier is None:
        pytest.skip("systemd-analyze is not installed")
    unit = re.sub(r"^ExecStart=\S+", f"ExecStart={program.RECSYS}", UNIT.read_text(), flags=re.MULTILINE)
    (tmp_path / UNIT.name).write_text(unit)
    process = subprocess.run(
        [verifier, "verify", "--man=no", tmp_path / UNIT.name], capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stderr) == (0, "")


def test_image_copies_existing_files_and_installs_an_existing_lock() -> None:
    sources = [arguments.split()[:-1] for arguments in instructions("COPY") if not arguments.startswith("--from")]
    assert all((ROOT / name).exists() for names in sources for name in names)
    (lock,) = (argument.removeprefix("LOCK=") for argument in instructions("ARG") if "LOCK" in argument)
    assert "--requirement requirements/${LOCK}.txt" in (ROOT / "runners" / "serve.Dockerfile").read_text()
    assert "--hash=sha256:" in (ROOT / "requirements" / f"{lock}.txt").read_text()
    assert json.loads(instructions("CMD")[0])[0] == "--config"
