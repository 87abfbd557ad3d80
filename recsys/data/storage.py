"""Files and folders by path or by URL: `log/day-1.parquet`, `s3://bucket/log/day-1.parquet`.

Paths are read with the standard library. URLs are opened with fsspec and the library that it has registered for the
scheme; that library looks up the credentials. Its exceptions are raised again as an `InputError` with a message of
one line. None of these libraries is imported before a URL is used.
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

import numpy as np
from numpy.typing import NDArray

from recsys.config.urls import Address
from recsys.errors import ConfigError, InputError, RecsysError

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""Scheme of a supported object store -> the extra of this package that installs its library."""
BLOCK_BYTES = 1 << 20


class LocalLocation:
    """A file, a folder or a glob on this machine."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path(name)

    def __truediv__(self, name: str) -> LocalLocation:
        return LocalLocation(str(self.path / name))

    @property
    def display_name(self) -> str:
        """The name for messages."""
        return self.name

    def list_files(self) -> list[str]:
        """Return the files that the path or the glob matches, sorted."""
        files = [name for name in sorted(glob.glob(self.name, recursive=True)) if Path(name).is_file()]  # noqa: PTH207
        return files or ([self.name] if self.path.is_file() else [])  # a file name may contain brackets

    def exists(self) -> bool:
        """Return whether there is a file or a folder."""
        return self.path.exists()

    def size(self) -> int:
        """Return the size of the file in bytes."""
        return self.path.stat().st_size

    def open(self) -> BinaryIO:
        """Open the file for reading."""
        return self.path.open("rb")

    def write_bytes(self, content: bytes) -> None:
        """Write or replace the file atomically."""
        with atomic_write(self.path) as draft:
            draft.write_bytes(content)

    def copy_from(self, file: Path) -> None:
        """Write or replace the file atomically with a copy of a local file."""
        with atomic_write(self.path) as draft:
            shutil.copyfile(file, draft)

    def draft(self, _: Path) -> Path:
        """Return the temporary file that `commit` renames, beside the final one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.path.with_name(f"{self.path.name}.tmp")

    def commit(self, draft: Path) -> None:
        """Rename a draft to the final name atomically."""
        draft.replace(self.path)

    def list_names(self) -> list[str]:
        """Return the names in the folder, sorted; an empty list if the folder does not exist."""
        return sorted(os.listdir(self.path)) if self.path.exists() else []  # noqa: PTH208 - names, not paths

    def remove(self) -> None:
        """Remove the folder and its content."""
        shutil.rmtree(self.path)


class RemoteLocation:
    """An object, a prefix or a glob in an object store, or on any other file system of fsspec.

    Raises:
        ConfigError: no library supports the scheme, or the URL contains a password.
        InputError: from every method, if the store is not available, denies access, or has no such object.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._address = Address(name)
        authority = name.partition("://")[2].partition("/")[0]
        if ":" in authority.rpartition("@")[0]:
            raise ConfigError(
                f"a URL must not contain a password. Received: {self.display_name}. Set the credentials in the "
                "environment variables that the library of the store reads."
            )

    def __truediv__(self, name: str) -> RemoteLocation:
        return RemoteLocation(f"{self.name.rstrip('/')}/{name}")

    @property
    def display_name(self) -> str:
        """The URL for messages, without credentials."""
        return self._address.shown

    def list_files(self) -> list[str]:
        """Return the objects that the URL or the glob matches, sorted, each as a URL."""
        with self._input_errors():
            self._system.invalidate_cache()  # other processes may have written since
            matches: dict[str, dict[str, Any]] = self._system.glob(self._path, detail=True)
        names = sorted(path for path, details in matches.items() if details["type"] == "file")
        if not names and self._type() == "file":  # a file name may contain brackets
            return [self.name]
        prefix = self.name.removesuffix(self._path)
        return [f"{prefix}{name}" for name in names]

    def exists(self) -> bool:
        """Return whether there is an object of this name, or any object below the prefix."""
        return self._type() is not None

    def size(self) -> int:
        """Return the size of the object in bytes."""
        with self._input_errors():
            return int(self._system.info(self._path)["size"])

    def open(self) -> BinaryIO:
        """Open the object for reading; it is fetched in blocks."""
        with self._input_errors():
            file = self._system.open(self._path, "rb", block_size=8 * BLOCK_BYTES)
            return io.BufferedReader(_RemoteReader(file, self._input_errors), BLOCK_BYTES)

    def write_bytes(self, content: bytes) -> None:
        """Write or replace the object atomically."""
        with self._input_errors():
            self._system.pipe_file(self._path, content)

    def copy_from(self, file: Path) -> None:
        """Upload a copy of a local file; it becomes visible when it is complete."""
        with self._input_errors():
            self._system.put_file(os.fspath(file), self._path)

    def draft(self, folder: Path) -> Path:
        """Return the temporary file that `commit` uploads, in a folder on this machine."""
        return folder / f".{hashlib.sha256(self.name.encode()).hexdigest()[:12]}.tmp"

    def commit(self, draft: Path) -> None:
        """Upload a draft and remove it."""
        self.copy_from(draft)
        draft.unlink()

    def list_names(self) -> list[str]:
        """Return the names directly below the prefix, sorted; an empty list if there is no such prefix."""
        if not self.exists():
            return []
        with self._input_errors():
            paths = {path.rstrip("/") for path in self._system.ls(self._path, detail=False)}
        paths -= {self._path.rstrip("/")}  # some stores keep an object for the prefix itself
        return sorted(path.rpartition("/")[2] for path in paths)

    def remove(self) -> None:
        """Remove all objects below the prefix."""
        with self._input_errors():
            self._system.rm(self._path, recursive=True)

    @cached_property
    def _system(self) -> Any:
        scheme = cast("str", self._address.scheme)
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the traceback of errors that we raise
        try:
            system, _ = import_module("fsspec").core.url_to_fs(self.name)
        except ImportError as error:
            remedy = f"Install recsys[{EXTRAS[scheme]}]" if scheme in EXTRAS else "Install it"
            raise ConfigError(
                f"{scheme}:// needs a library that cannot be imported: {error}. {remedy}, or use a local path."
            ) from None
        except ValueError as error:
            raise ConfigError(
                f"a URL must begin with a scheme that fsspec supports, such as s3://. "
                f"Received: {self.display_name}: {error}."
            ) from None
        return system

    def _type(self) -> str | None:
        """Return `file`, `directory`, or None if there is neither."""
        with self._input_errors():
            self._system.invalidate_cache()
            try:
                return str(self._system.info(self._path)["type"])
            except FileNotFoundError as error:
                if error.__cause__ is not None:  # the bucket is missing, not the object
                    raise
                return None

    @cached_property
    def _path(self) -> str:
        return str(self._system._strip_protocol(self.name))  # noqa: SLF001 - public according to fsspec's documentation

    @contextmanager
    def _input_errors(self) -> Iterator[None]:
        """Raise the exceptions of any library as `InputError`."""
        try:
            yield
        except RecsysError:
            raise
        except Exception as error:  # noqa: BLE001 - each library has its own, and not all are OSErrors
            text = self._address.without_secret(str(error)).rstrip(".") or type(error).__name__
            raise InputError(
                f"{self.display_name} must exist and be accessible. Received: {text}. "
                "Check the name and the credentials in the environment."
            ) from None  # the original text may contain a secret


class _RemoteReader(io.RawIOBase):
    """An open file of fsspec that raises its errors as `InputError`."""

    def __init__(self, file: Any, input_errors: Callable[[], AbstractContextManager[None]]) -> None:
        self._file = file
        self._input_errors = input_errors

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        with self._input_errors():
            return int(self._file.readinto(buffer))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


Location = LocalLocation | RemoteLocation


def locate(name: str) -> Location:
    """Return the location of a path or a URL, without accessing it.

    Raises:
        ConfigError: the URL contains a password.
    """
    return LocalLocation(name) if Address(name).scheme is None else RemoteLocation(name)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file; rename it to `path` at the end of the block, replacing any file there."""
    location = LocalLocation(os.fspath(path))
    draft = location.draft(path.parent)
    yield draft
    location.commit(draft)


def sha256(source: str | Path) -> str:
    """Return the SHA-256 of a file, by path or URL, in hexadecimal; it is read in blocks."""
    with locate(os.fspath(source)).open() as file:
        return hashlib.file_digest(cast("IO[bytes]", file), "sha256").hexdigest()  # type: ignore[arg-type]


def map_array(path: Path, name: str) -> NDArray[Any]:
    """Map a `.npy` file into memory, read-only; processes that map the same file share its pages.

    Args:
        path: the file.
        name: what the array is called in the error.

    Raises:
        InputError: the file is missing or not a `.npy` file.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{name} must be a .npy file. Received {path}: {error}") from None


def write_rows(path: Path, start: int, rows: NDArray[Any]) -> None:
    """Write rows of the array in an existing `.npy` file, from row `start`; faster than a map, which faults on pages.

    Args:
        path: the file, with an array of the type of `rows` and at least 2 dimensions.
        start: number of the first row.
        rows: [n, ...].
    """
    mapped = np.load(path, mmap_mode="r")
    with path.open("r+b") as file:
        file.seek(mapped.offset + start * mapped.strides[0])
        rows.tofile(file)
