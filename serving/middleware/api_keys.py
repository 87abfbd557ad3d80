"""API keys: who may ask, and who may write.

What is kept of a key is its SHA-256: a key is 256 random bits, which nobody finds by trying. A line is one key:

    NAME read|write HASH

A key that may write may also ask. Lines are changed while the service runs; several of one name let a caller move
from an old key to a new one.
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
"""Variable with such lines, or with `;` between them."""
PREFIX = "rk_"
LOOK_S = 1.0
"""Seconds between two looks at the file."""
RIGHTS = ("read", "write")


class Key(NamedTuple):
    """What is known of a key."""

    name: str
    right: str
    """`read` or `write`."""
    digest: str
    """SHA-256 of the key, in hexadecimal."""

    @property
    def line(self) -> str:
        """As it is kept."""
        return f"{self.name} {self.right} {self.digest}"


def new(name: str, right: str) -> tuple[str, Key]:
    """A new key, to be told once, and what is kept of it.

    Raises:
        ConfigError: a name with blanks, or no such right.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    return secret, parse(f"{name} {right} {_digest(secret)}")[0]


def parse(text: str) -> list[Key]:
    """Lines as keys; empty ones and those that begin with `#` are none.

    Raises:
        ConfigError: a line that is something else. It is not shown, since it may hold a key.
    """
    keys = []
    for number, line in enumerate(text.replace(";", "\n").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 3 or words[1] not in RIGHTS or len(words[2]) != 64:  # noqa: PLR2004 - a SHA-256
            raise ConfigError(
                f"each line of the API keys must be NAME read|write HASH, without blanks in the name. Received: "
                f"something else in line {number}. Make one by: recsys keys new NAME"
            )
        keys.append(Key(*words))
    return keys


class Keys:
    """The keys that are let in at the moment.

    Args:
        path: their file; None for those in the environment.

    Raises:
        ConfigError: the file cannot be read, or is not one of keys.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._looked = time.monotonic()
        self._state = self._now()
        self._keys = parse(os.environ.get(VARIABLE, "") if path is None else _read(path))
        self.required = path is not None or bool(self._keys)
        """Whether asking needs a key. A file without keys lets nobody in."""

    def find(self, secret: str) -> Key | None:
        """The key, if it is one that is let in. Takes as long for any other."""
        self._look()
        digest, found = _digest(secret), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _look(self) -> None:
        if self._path is None or time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        now = self._now()
        if now == self._state:
            return
        try:
            self._keys = parse(_read(self._path))
            self._state = now
        except ConfigError as error:  # the keys that were let in still are
            logger.error("%s", error)  # noqa: TRY400 - its message is all there is to say

    def _now(self) -> tuple[int, ...]:
        """Another one where the file changed."""
        try:
            status = os.stat(self._path or "")  # noqa: PTH116 - quicker
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
