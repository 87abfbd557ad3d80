"""Readers of text files, plain or gzipped, that check that the content is UTF-8."""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, cast

from pipelines.context.input_units import is_gzipped
from recsys.data import storage

BLOCK_BYTES = 1 << 20


@contextmanager
def open_text(source: str) -> Iterator[io.BufferedReader]:
    """Open a text file as bytes, decompressed.

    Reading raises `UnicodeDecodeError` if the file is not UTF-8.
    """
    with ExitStack() as stack:
        file = stack.enter_context(storage.locate(source).open())
        if is_gzipped(source):
            file = stack.enter_context(cast("BinaryIO", gzip.GzipFile(fileobj=file)))
        yield stack.enter_context(io.BufferedReader(_Utf8Checker(file), BLOCK_BYTES))


class _Utf8Checker(io.RawIOBase):
    """Checks the encoding while a file is read, because pyarrow prints a traceback for lines that are not UTF-8."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._file.read(len(buffer))
        self._decoder.decode(block, final=not block)
        buffer[: len(block)] = block
        return len(block)
