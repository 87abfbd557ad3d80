"""Start the program `recsys` in another process, as users do."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

RECSYS = Path(sysconfig.get_path("scripts")) / "recsys"
TIMEOUT_S = 300


def run(*arguments: object, timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """Run the program to its end. Any exit code is accepted."""
    command = [os.fspath(RECSYS), *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def start(*arguments: object, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """Start the program; its standard error is a pipe."""
    command = [os.fspath(RECSYS), *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
