"""What is shipped: a wheel that installs into a clean environment, and a config example that is true."""

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
def test_a_wheel_installs_and_serves_without_training_parts(tmp_path: Path) -> None:
    """Only the wheel and what it declares: no checkout, no development extras, no TensorFlow."""
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as content:
        templates = {
            str(path.relative_to(ROOT)) for path in (ROOT / "pipelines").rglob("*") if path.suffix in TEMPLATES
        }
        assert {"pipelines/reports/templates/plot.svg"} <= templates <= set(content.namelist())
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
    answer = run(python.parent / "recsys", "similar", "item-1-1", "--k", "2", "--release", GOLDEN, "--json")
    assert '"release_id": "571d78ec1c0d"' in answer
    missing = "import importlib.util; print(importlib.util.find_spec('tensorflow'))"
    assert run(python, "-c", missing).strip() == "None"


def test_the_changelog_tells_of_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {recsys.__version__}" in changelog or "## Unreleased" in changelog


def test_no_file_of_the_tree_names_a_package_index_or_a_machine() -> None:
    """What is committed works wherever it is checked out."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout to know which files are the tree's")
    tracked = subprocess.run([git, "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    hosts = ["pypi" + ".org", "python" + "hosted", "/work" + "/", "/root" + "/", "/home" + "/"]
    for name in tracked:
        content = (ROOT / name).read_bytes()
        assert not [host for host in hosts if host.encode() in content], name
