"""TCP proxy in front of a server. A test can stop it, or let it accept connections without forwarding anything."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal
from urllib.parse import urlsplit


class TcpProxy:
    """Forwards TCP connections from its own port to a server, until it is interrupted."""

    def __init__(self, server: str) -> None:
        address = urlsplit(server)
        self._server = (address.hostname, address.port)
        self._sockets: list[socket.socket] = []
        self._forwarders: list[threading.Thread] = []
        self._silent = False
        self.silent_connections = 0
        """Connections that were accepted while nothing was forwarded."""
        self._listen(0)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def interrupt(self, mode: Literal["closed", "hanging"]) -> None:
        """Refuse new connections and drop the open ones (closed), or accept connections and forward nothing."""
        if mode == "hanging":
            self._silent = True
        else:
            self.close()

    def restore(self) -> None:
        """Forward again, at the same port."""
        self.close()
        self._silent = False
        self._listen(self.port)

    def close(self) -> None:
        """Close the listener and all connections."""
        _shut_down(self._listener)
        self._acceptor.join()  # first, because it adds connections
        for connection in self._sockets:
            _shut_down(connection)
        for thread in self._forwarders:
            thread.join()
        for connection in (self._listener, *self._sockets):
            connection.close()
        self._sockets, self._forwarders = [], []

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=100)
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._sockets += [client, server]
                self.silent_connections += self._silent
                for ends in ((client, server), (server, client)):
                    self._forwarders.append(threading.Thread(target=self._forward, args=ends))
                    self._forwarders[-1].start()

    def _forward(self, source: socket.socket, destination: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(65_536):
                if not self._silent:
                    destination.sendall(chunk)
        with suppress(OSError):
            destination.shutdown(socket.SHUT_WR)


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):  # the other side has closed it
        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy_to(server: str) -> Iterator[TcpProxy]:
    """Yield a proxy to a server; it is closed at the end."""
    proxy = TcpProxy(server)
    try:
        yield proxy
    finally:
        proxy.close()
