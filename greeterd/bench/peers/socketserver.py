"""A greeting server on the standard library's `socketserver`: ForkingTCPServer, as documented.

Of the two things that forking may mean here this is the one that the library offers: a process for
each connection, forked when it is accepted, 40 of them at a time at most (`max_children`).  A
worker is a ForkingTCPServer; it and its children write the worker's log, each record by one append.
`pid` is the child's, and so `seq` is always 1.  Changed for the sake of comparison: the backlog
(`request_queue_size`, 5 unless it is set), and the listener, which workers share in mode inherit.
"""

import gc
import os
import signal
import socketserver
import sys
from typing import Final

from structlog.typing import FilteringBoundLogger

from greeterd.bench.peers.fleet import (
    CLIENT_TIMEOUT,
    MOST_BYTES,
    Seat,
    client_of,
    main,
    name_of,
    open_listener,
    open_log,
)
from greeterd.system.signals import die_with_parent

LOOK: Final = 0.1
"""Seconds between two looks whether the server is to end, while nobody connects."""


class _EndError(Exception):
    """The server was told to end."""


class _Greeting(socketserver.StreamRequestHandler):
    timeout = CLIENT_TIMEOUT  # of each read
    server: "_Server"

    def handle(self) -> None:
        die_with_parent(signal.SIGKILL, self.server.pid)
        try:
            data = self.rfile.read(MOST_BYTES)
        except OSError:
            return
        if name := name_of(data):
            self.server.log.info(
                "greeting",
                greeting=f"Hello, {name}",
                name=name,
                pid=os.getpid(),
                seq=1,
                client=client_of(self.client_address),
            )


class _Server(socketserver.ForkingTCPServer):
    def __init__(self, seat: Seat) -> None:
        super().__init__((seat.address.host, seat.address.port), _Greeting, bind_and_activate=False)
        self.socket.close()
        self.socket = open_listener(seat)
        self.log: FilteringBoundLogger = open_log(seat)
        self.pid = os.getpid()

    def service_actions(self) -> None:
        super().service_actions()
        # SIGTERM stays blocked: a handler that raised could do so between accept and fork.
        if signal.SIGTERM in signal.sigpending():
            raise _EndError


def serve(seat: Seat) -> None:
    """Be a worker."""
    try:
        with _Server(seat) as server:  # which waits for its children at the end
            gc.freeze()  # as the gc module's page advises: its marks would copy pages after a fork
            seat.ready()
            server.serve_forever(poll_interval=LOOK)
    except _EndError:
        pass


if __name__ == "__main__":
    sys.exit(main(serve, "socketserver"))
