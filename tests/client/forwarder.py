"""Stands between a client and a server: passes bytes on, later, never again, or through TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import Self


class Forwarder:
    """Listens on a free port and passes every connection on to `target` (host:port).

    It listens from `start()` on, so a test can have a server that comes up late; `cut()` drops all
    connections; `received` collects what clients sent, `connections` counts them.
    """

    def __init__(self, target: str, context: ssl.SSLContext | None = None) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._context = context
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._reserved.getsockname()[1]}"
        self.received = bytearray()
        self.connections = 0
        self._pairs: list[socket.socket] = []

    def start(self) -> Self:
        """Begin to listen."""
        self._reserved.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def cut(self) -> None:
        """Drop every connection, as a server does that's killed."""
        pairs, self._pairs = self._pairs, []
        for each in pairs:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening and drop everything."""
        with contextlib.suppress(OSError):
            self._reserved.shutdown(socket.SHUT_RDWR)
        self._reserved.close()
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._reserved.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            near = self._context.wrap_socket(plain, server_side=True) if self._context else plain
            far = socket.create_connection(self._target)
        except OSError:
            plain.close()
            return
        self._pairs += [near, far]
        threading.Thread(target=self._pump, args=(near, far, self.received), daemon=True).start()
        self._pump(far, near, None)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, copy: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if copy is not None:
                    copy += data
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
