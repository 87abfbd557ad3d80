"""The package: a wheel that installs into a clean environment, the changelog, and the files of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import recsys
from tests import ROOT

GOLDEN = ROOT / "tests" / "golden" / "v1"
TEMPLATES = {".html", ".svg"}


@pytest.mark.slow
def test_wheel_answers_queries_without_training_packages(tmp_path: Path) -> None:
    """Only the wheel and the requirements of a server are installed, without TensorFlow."""
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        templates = {
            str(path.relative_to(ROOT)) for path in (ROOT / "pipelines").rglob("*") if path.suffix in TEMPLATES
        }
        assert {"pipelines/reports/templates/plot.svg"} <= templates <= set(archive.namelist())
    venv.create(tmp_path / "clean", with_pip=True)
    python = tmp_path / "clean" / "bin" / "python"

    def run(*command: str | Path) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = [python, "-m", "pip"]
    run(*pip, "install", "--quiet", "--require-hashes", "--requirement", ROOT / "requirements" / "server.txt")
    run(*pip, "install", "--quiet", "--no-deps", wheel)
    run(*pip, "check")
    assert "nightly" in run(python.parent / "recsys", "--help")
    code = "import recsys, pipelines, serving, serving.app; print(recsys.__file__)"
    assert str(tmp_path / "clean") in run(python, "-c", code)
    output = run(python.parent / "recsys", "similar", "item-1-1", "--k", "2", "--release", GOLDEN, "--json")
    assert '"release_id": "571d78ec1c0d"' in output
    find_tensorflow = "import importlib.util; print(importlib.util.find_spec('tensorflow'))"
    assert run(python, "-c", find_tensorflow).strip() == "None"


def test_changelog_has_an_entry_for_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {recsys.__version__}" in changelog or "## Unreleased" in changelog


def test_no_file_names_a_package_index_or_a_path_of_a_machine() -> None:
    """The repository must work wherever it is checked out."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout to know which files belong to the repository")
    tracked = subprocess.run([git, "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    hosts = ["pypi" + ".org", "python" + "hosted", "/work" + "/", "/root" + "/", "/home" + "/"]
    for name in tracked:
        content = (ROOT / name).read_bytes()
        assert not [host for host in hosts if host.encode() in content], name
