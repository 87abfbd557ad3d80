"""Run a function of a benchmark in a process of its own, so that its peak memory is not that of other work."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Any


def run(module: str, function: str, *arguments: Any) -> Any:
    """Call a function in a new process, and return its result.

    Args:
        module: name of the module; that of a program itself would be `__main__` here.
        function: prints nothing to standard output, and returns what JSON can represent.
        arguments: values whose `repr` is an expression.
    """
    call = f"{function}({', '.join(map(repr, arguments))})"
    program = f"import json; from {module} import {function}; print(json.dumps({call}))"
    process = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return json.loads(process.stdout)


def peak_mib() -> float:
    """Return the peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
