"""API keys and their permissions.

Only the SHA-256 of a key is stored; a key has 256 random bits, so the hash cannot be inverted by guessing. Each line
of the file of keys is one key:

    NAME read|write HASH

The permission `write` includes `read`. The file may change while the service runs. Several keys may have the same
name, so that a client can switch from an old key to a new one.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import time
from pathlib import Path
from typing import NamedTuple

from recsys.errors import ConfigError

logger = logging.getLogger(__name__)

VARIABLE = "RECSYS_KEYS"
"""Environment variable with the same lines, separated by newlines or `;`."""
PREFIX = "rk_"
CHECK_INTERVAL_S = 1.0
"""Seconds between two checks for changes of the file."""
PERMISSIONS = ("read", "write")


class ApiKey(NamedTuple):
    """One line of the file of keys."""

    name: str
    permission: str
    """`read` or `write`."""
    digest: str
    """SHA-256 of the key, in hexadecimal."""

    @property
    def line(self) -> str:
        """The line of the file."""
        return f"{self.name} {self.permission} {self.digest}"


def create_key(name: str, permission: str) -> tuple[str, ApiKey]:
    """Return a new secret key, and the entry to store.

    Raises:
        ConfigError: the name contains whitespace, or the permission does not exist.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    return secret, parse_keys(f"{name} {permission} {_digest(secret)}")[0]


def parse_keys(text: str) -> list[ApiKey]:
    """Parse lines of keys. Empty lines and lines that begin with `#` are ignored.

    Raises:
        ConfigError: a line is invalid. The message does not contain it, since it may be a secret key.
    """
    keys = []
    for line_number, line in enumerate(text.replace(";", "\n").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 3 or words[1] not in PERMISSIONS or len(words[2]) != 64:  # noqa: PLR2004 - a SHA-256
            raise ConfigError(
                "each line of the API keys must be NAME read|write HASH, without whitespace in the name. "
                f"Received: another text in line {line_number}. Create a key: recsys keys new NAME"
            )
        keys.append(ApiKey(*words))
    return keys


class ApiKeys:
    """The valid keys, reloaded when their file changes.

    Args:
        path: file of keys; None to read the environment variable.

    Raises:
        ConfigError: the file cannot be read, or has an invalid line.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._checked_at = time.monotonic()
        self._file_state = self._stat()
        self._keys = parse_keys(os.environ.get(VARIABLE, "") if path is None else _read(path))
        self.required = path is not None or bool(self._keys)
        """Whether reading requires a key. With a file that has no keys, every request is rejected."""

    def find(self, secret: str) -> ApiKey | None:
        """Return the entry of a secret key, or None. The time taken does not depend on which key matches."""
        self._reload_if_changed()
        digest, match = _digest(secret), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                match = key
        return match

    def _reload_if_changed(self) -> None:
        if self._path is None or time.monotonic() - self._checked_at < CHECK_INTERVAL_S:
            return
        self._checked_at = time.monotonic()
        file_state = self._stat()
        if file_state == self._file_state:
            return
        try:
            self._keys = parse_keys(_read(self._path))
            self._file_state = file_state
        except ConfigError as error:  # the previous keys stay valid
            logger.error("%s", error)  # noqa: TRY400 - the traceback adds nothing

    def _stat(self) -> tuple[int, ...]:
        """Return a value that differs if the file changed."""
        try:
            status = os.stat(self._path or "")  # noqa: PTH116 - faster
        except OSError:
            return ()
        return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"serve.keys must be a file of API keys. Received {path}: {error}.") from None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
