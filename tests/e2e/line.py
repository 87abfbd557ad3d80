"""A line to a server that a test can cut: closed to everybody, or open and silent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal
from urllib.parse import urlsplit


class Line:
    """Hands on TCP connections from a port of its own to a server, until it is cut."""

    def __init__(self, server: str) -> None:
        there = urlsplit(server)
        self._server = (there.hostname, there.port)
        self._ends: list[socket.socket] = []
        self._handing: list[threading.Thread] = []
        self._silent = False
        self.tried = 0
        """Connections that were taken in silence."""
        self._listen(0)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def cut(self, how: Literal["closed", "hanging"]) -> None:
        """Refuse connections and drop those that there are, or take them and hand nothing on."""
        if how == "hanging":
            self._silent = True
        else:
            self.close()

    def mend(self) -> None:
        """Hand on again, at the same port."""
        self.close()
        self._silent = False
        self._listen(self.port)

    def close(self) -> None:
        """End everything that goes on."""
        _shut(self._listener)
        self._accepting.join()  # before the connections, so that none is added to them
        for end in self._ends:
            _shut(end)
        for thread in self._handing:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()
        self._ends, self._handing = [], []

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=100)
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._ends += [client, server]
                self.tried += self._silent
                for ends in ((client, server), (server, client)):
                    self._handing.append(threading.Thread(target=self._hand_on, args=ends))
                    self._handing[-1].start()

    def _hand_on(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while piece := one.recv(65_536):
                if not self._silent:
                    other.sendall(piece)
        with suppress(OSError):
            other.shutdown(socket.SHUT_WR)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):  # closed by the other side
        end.shutdown(socket.SHUT_RDWR)


@contextmanager
def line_to(server: str) -> Iterator[Line]:
    """A line to a server, closed at the end."""
    line = Line(server)
    try:
        yield line
    finally:
        line.close()
