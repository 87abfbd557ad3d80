"""Places by path or by URL: `log/day-1.parquet`, `s3://bucket/log/day-1.parquet`.

Paths are ours. URLs are fsspec's, and those of the library that it knows for the scheme: that library also finds
the credentials, in the environment or wherever its service keeps them. Whatever it raises leaves here as an
`InputError` of one line. Neither is imported before there is a URL.
"""

from __future__ import annotations

import glob
import hashlib
import io
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from recsys.config.urls import Address
from recsys.errors import ConfigError, InputError, RecsysError

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""Scheme of an object store that we promise to read and write -> the extra that brings its library."""
BLOCK_BYTES = 1 << 20


class LocalPlace:
    """A file, a folder or a glob of this machine."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path(name)

    def __truediv__(self, name: str) -> LocalPlace:
        return LocalPlace(str(self.path / name))

    @property
    def shown(self) -> str:
        """As it may be shown."""
        return self.name

    def files(self) -> list[str]:
        """The files that a path or a glob names, sorted."""
        found = [name for name in sorted(glob.glob(self.name, recursive=True)) if Path(name).is_file()]  # noqa: PTH207
        return found or ([self.name] if self.path.is_file() else [])  # a name with brackets is also a file

    def exists(self) -> bool:
        """Whether there is a file or a folder."""
        return self.path.exists()

    def size(self) -> int:
        """Size of a file."""
        return self.path.stat().st_size

    def open(self) -> BinaryIO:
        """A file, to read."""
        return self.path.open("rb")

    def write(self, content: bytes) -> None:
        """Put a file there, or in the place of another one, in one step."""
        with whole(self.path) as draft:
            draft.write_bytes(content)

    def copy(self, file: Path) -> None:
        """Put a copy of a file there."""
        with whole(self.path) as draft:
            shutil.copyfile(file, draft)

    def draft(self, _: Path) -> Path:
        """Where to write what `take` takes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.path.with_name(f"{self.path.name}.tmp")

    def take(self, draft: Path) -> None:
        """Give a draft its name, in one step."""
        draft.replace(self.path)

    def names(self) -> list[str]:
        """What lies in a folder; nothing where there is none."""
        return sorted(os.listdir(self.path)) if self.path.exists() else []  # noqa: PTH208 - names, not paths

    def remove(self) -> None:
        """Remove a folder, with all that is in it."""
        shutil.rmtree(self.path)


class RemotePlace:
    """An object, a prefix or a glob of an object store, or whatever else fsspec knows.

    Raises:
        ConfigError: no library for the scheme, or a URL that holds a password.
        InputError: from every method, where the store is away, refuses, or has no such thing.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._address = Address(name)
        authority = name.partition("://")[2].partition("/")[0]
        if ":" in authority.rpartition("@")[0]:
            raise ConfigError(
                f"a URL must hold no password. Received: {self.shown}. Give credentials by the environment, where "
                "the library of the store looks for them."
            )

    def __truediv__(self, name: str) -> RemotePlace:
        return RemotePlace(f"{self.name.rstrip('/')}/{name}")

    @property
    def shown(self) -> str:
        """As it may be shown."""
        return self._address.shown

    def files(self) -> list[str]:
        """The files that a URL or a glob names, sorted, each as a URL."""
        with self._told():
            self._system.invalidate_cache()  # what others wrote since is also there
            found: dict[str, dict[str, Any]] = self._system.glob(self._path, detail=True)
        names = sorted(path for path, about in found.items() if about["type"] == "file")
        if not names and self._type() == "file":  # a name with brackets is also a file
            return [self.name]
        before = self.name.removesuffix(self._path)
        return [f"{before}{name}" for name in names]

    def exists(self) -> bool:
        """Whether there is an object, or any below the prefix."""
        return self._type() is not None

    def size(self) -> int:
        """Size of an object."""
        with self._told():
            return int(self._system.info(self._path)["size"])

    def open(self) -> BinaryIO:
        """An object, to read; it is fetched block by block."""
        with self._told():
            file = self._system.open(self._path, "rb", block_size=8 * BLOCK_BYTES)
            return io.BufferedReader(_Reading(file, self._told), BLOCK_BYTES)

    def write(self, content: bytes) -> None:
        """Put an object there, or in the place of another one, in one step."""
        with self._told():
            self._system.pipe_file(self._path, content)

    def copy(self, file: Path) -> None:
        """Put a copy of a file there; it is seen when it is whole."""
        with self._told():
            self._system.put_file(os.fspath(file), self._path)

    def draft(self, folder: Path) -> Path:
        """Where to write what `take` takes: in a folder of this machine."""
        return folder / f".{hashlib.sha256(self.name.encode()).hexdigest()[:12]}.tmp"

    def take(self, draft: Path) -> None:
        """Put a draft there, in one step."""
        self.copy(draft)
        draft.unlink()

    def names(self) -> list[str]:
        """What lies directly below a prefix; nothing where there is no such prefix."""
        if not self.exists():
            return []
        with self._told():
            found = {path.rstrip("/") for path in self._system.ls(self._path, detail=False)}
        found -= {self._path.rstrip("/")}  # some keep an object for the prefix itself
        return sorted(path.rpartition("/")[2] for path in found)

    def remove(self) -> None:
        """Remove all that is below a prefix."""
        with self._told():
            self._system.rm(self._path, recursive=True)

    @cached_property
    def _system(self) -> Any:
        scheme = cast("str", self._address.scheme)
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the traceback of what we report
        try:
            system, _ = import_module("fsspec").core.url_to_fs(self.name)
        except ImportError as error:
            remedy = f"Install recsys[{EXTRAS[scheme]}]" if scheme in EXTRAS else "Install it"
            raise ConfigError(
                f"{scheme}:// needs a library that cannot be imported: {error}. {remedy}, or name a local path."
            ) from None
        except ValueError as error:
            raise ConfigError(
                f"a URL must begin with a scheme that fsspec knows, such as s3://. Received: {self.shown}: {error}."
            ) from None
        return system

    def _type(self) -> str | None:
        """`file`, `directory`, or None of what is not there."""
        with self._told():
            self._system.invalidate_cache()
            try:
                return str(self._system.info(self._path)["type"])
            except FileNotFoundError as error:
                if error.__cause__ is not None:  # not the object is missing, but its bucket
                    raise
                return None

    @cached_property
    def _path(self) -> str:
        return str(self._system._strip_protocol(self.name))  # noqa: SLF001 - public by fsspec's own documentation

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except RecsysError:
            raise
        except Exception as error:  # noqa: BLE001 - each library has its own, and not all are OSErrors
            text = self._address.without_secret(str(error)).rstrip(".") or type(error).__name__
            raise InputError(
                f"{self.shown} must be there, and be ours to use. Received: {text}. "
                "Check its name and the credentials in the environment."
            ) from None  # its own text may hold a secret


class _Reading(io.RawIOBase):
    """A file of fsspec whose errors are told."""

    def __init__(self, file: Any, told: Callable[[], AbstractContextManager[None]]) -> None:
        self._file = file
        self._told = told

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        with self._told():
            return int(self._file.readinto(buffer))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


Place = LocalPlace | RemotePlace


def at(name: str) -> Place:
    """The place of a path or a URL; nothing is asked yet.

    Raises:
        ConfigError: a URL that holds a password.
    """
    return LocalPlace(name) if Address(name).scheme is None else RemotePlace(name)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file of this machine that takes its name when it is whole, also in the place of another one."""
    place = LocalPlace(os.fspath(path))
    draft = place.draft(path.parent)
    yield draft
    place.take(draft)


def sha256(source: str | Path) -> str:
    """SHA-256 of a file by path or URL, in hexadecimal, read block by block."""
    with at(os.fspath(source)).open() as file:
        return hashlib.file_digest(cast("IO[bytes]", file), "sha256").hexdigest()  # type: ignore[arg-type]
