"""The container file and the examples of where the service runs: what they start is started, what they ask is asked."""

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
    """The Kubernetes objects of the service, by `Kind/name`."""
    for path in (ROOT / "examples").rglob("*.yaml"):
        found = list(yaml.safe_load_all(path.read_text()))
        if any(one["kind"] == "StatefulSet" for one in found):
            return {f"{one['kind']}/{one['metadata']['name']}": one for one in found}
    raise AssertionError


def instructions(name: str) -> list[str]:
    """What the container file says by one instruction."""
    lines = (ROOT / "runners" / "serve.Dockerfile").read_text().splitlines()
    return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]


def test_a_pod_starts_listens_and_is_probed_as_the_service_does(tmp_path: Path, write_release: WriteRelease) -> None:
    """With the arguments, the config and the keys of the example, but for places of this machine."""
    objects = manifests()
    pod = objects["StatefulSet/recsys"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    write_release(["a", "b", "c"], release_id="first")
    _, key = api_keys.create_key("any", "read")
    (tmp_path / "keys.txt").write_text(key.line)
    places = {"/data": str(tmp_path), "/keys": str(tmp_path), "/config": str(tmp_path)}
    places["s3://BUCKET/releases"] = str(tmp_path / "releases")

    def here(text: str) -> str:
        for place, local in places.items():
            text = re.sub(rf"(?<![\w/]){place}", local, text)
        return text

    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/keys", "/config"}
    (entry,) = (json.loads(one) for one in instructions("ENTRYPOINT"))
    command = [*entry, *map(here, container["args"])]
    assert command[:4] == ["recsys", "serve", "--host", "0.0.0.0"]  # noqa: S104 - in a container
    service = Service(tmp_path)
    service.config.write_text(here(objects["ConfigMap/recsys"]["data"]["recsys.toml"]))
    assert str(service.config) in command
    service.source = ("--release", command[command.index("--release") + 1])
    set_here = load_config(service.config)
    service.start()
    try:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["port"] == "http"
            assert service.get(asked["path"]).status_code == 200
        assert service.get("/v1/release").status_code == 401, "the keys are those of the file"
        assert len(service.workers()) == set_here.serve.workers
    finally:
        service.close()
    (port,) = container["ports"]
    assert port == {"name": "http", "containerPort": set_here.serve.port}
    assert instructions("EXPOSE") == [str(set_here.serve.port)]
    assert pod["spec"]["terminationGracePeriodSeconds"] > SHUTDOWN_TIMEOUT_S + 5
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert instructions("USER")[-1].isdecimal(), "Kubernetes cannot tell of a name that it is not root"


def test_objects_name_each_other() -> None:
    objects = manifests()
    labels = objects["StatefulSet/recsys"]["spec"]["template"]["metadata"]["labels"]
    spec = objects["StatefulSet/recsys"]["spec"]
    assert spec["selector"]["matchLabels"] == labels
    assert spec["replicas"] > objects["PodDisruptionBudget/recsys"]["spec"]["minAvailable"]
    assert objects["PodDisruptionBudget/recsys"]["spec"]["selector"]["matchLabels"] == labels
    services = [one for name, one in objects.items() if name.startswith("Service/")]
    assert f"Service/{spec['serviceName']}" in objects
    assert all(one["spec"]["selector"] == labels for one in services)
    pod = spec["template"]["spec"]
    volumes = {one["name"] for one in pod["volumes"]} | {
        one["metadata"]["name"] for one in spec["volumeClaimTemplates"]
    }
    assert {mount["name"] for one in pod["containers"] for mount in one["volumeMounts"]} == volumes


def test_the_unit_starts_what_there_is_and_waits_for_its_end() -> None:
    settings = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))
    _, *arguments = shlex.split(settings["ExecStart"])
    done = program.run(*arguments)
    assert done.returncode == 2
    assert "/etc/recsys/recsys.toml" in done.stderr, "all is known but for the config"
    assert int(settings["TimeoutStopSec"]) > SHUTDOWN_TIMEOUT_S + 5


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    verifier = shutil.which("systemd-analyze")
    if verifier is None:
        pytest.skip("systemd-analyze is not installed")
    here = re.sub(r"^ExecStart=\S+", f"ExecStart={program.RECSYS}", UNIT.read_text(), flags=re.MULTILINE)
    (tmp_path / UNIT.name).write_text(here)
    done = subprocess.run(
        [verifier, "verify", "--man=no", tmp_path / UNIT.name], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_image_copies_existing_files_and_installs_an_existing_lock() -> None:
    copied = [words.split()[:-1] for words in instructions("COPY") if not words.startswith("--from")]
    assert all((ROOT / name).exists() for names in copied for name in names)
    (lock,) = (words.removeprefix("LOCK=") for words in instructions("ARG") if "LOCK" in words)
    assert "--requirement requirements/${LOCK}.txt" in (ROOT / "runners" / "serve.Dockerfile").read_text()
    assert "--hash=sha256:" in (ROOT / "requirements" / f"{lock}.txt").read_text()
    assert json.loads(instructions("CMD")[0])[0] == "--config"
