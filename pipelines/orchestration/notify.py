"""Who is told how a night ended: a webhook, a command, or nobody. None of it can fail the night."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from recsys.config.sections import NotifyConfig

WEBHOOK = "RECSYS_WEBHOOK"
"""Variable of the environment with the URL; it goes before the config, and a secret is better kept there."""

Say = Callable[[str], None]


def notify(summary: Mapping[str, Any], config: NotifyConfig, say: Say) -> None:
    """Tell the webhook and the command of the config, if the night ended in a way that they want to know of.

    Args:
        summary: of the night, ready for JSON, with `outcome`.
        config: whom to tell, and of what.
        say: takes a line where one of them could not be told. No line shows the URL, which may hold a secret.
    """
    if summary["outcome"] not in config.on:
        return
    content = json.dumps(summary).encode()
    url = os.environ.get(WEBHOOK) or config.webhook
    if url:
        said = _post(url, content, config.timeout_seconds)
        if said:
            say(f"The webhook was not told: {said}.")
    if config.command:
        said = _run(config.command, content, config.timeout_seconds)
        if said:
            say(f"The command of [notify] was not told: {said}.")


def _post(url: str, content: bytes, timeout: float) -> str | None:
    """What went wrong, None where nothing did."""
    said: str | None = f"no answer after {timeout:g} s"

    def post() -> None:
        nonlocal said
        try:
            if not url.lower().startswith(("http://", "https://")):
                said = "the URL must begin with http:// or https://"
                return
            headers = {"Content-Type": "application/json"}
            request = Request(url, content, headers, method="POST")  # noqa: S310 - the scheme was looked at
            with urlopen(request, timeout=timeout):  # noqa: S310
                said = None
        except HTTPError as error:
            said = f"it answered {error.code}"
        except Exception as error:  # noqa: BLE001 - some messages of urllib hold the URL
            said = type(error).__name__

    # a thread, since urllib's timeout is of each byte: a server that answers slowly would hold the night
    thread = threading.Thread(target=post, daemon=True)
    thread.start()
    thread.join(timeout)
    return said


def _run(command: tuple[str, ...], content: bytes, timeout: float) -> str | None:
    """What went wrong, None where nothing did. No shell reads the arguments."""
    try:
        # standard output is for the night's own result
        done = subprocess.run(command, input=content, stdout=subprocess.DEVNULL, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return f"{command[0]} was not done after {timeout:g} s"
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    return f"{command[0]} ended with exit code {done.returncode}" if done.returncode else None
