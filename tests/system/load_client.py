"""Greets an address many times from one process, a number at a time; prints what became of each.

Run by tests.system.clients as `python -m tests.system.load_client ADDRESS ...`. Every connection
sends its own name, half-closes, waits for end-of-stream, and ends as exactly one of KINDS. It ends
after `count` connections, or, once its standard input ends, when those that are open have ended.
Writes to standard output: a line `going` after the first connection, then one JSON object.
"""

import argparse
import contextlib
import errno
import json
import os
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field

from tests.system.clients import KINDS, socket_for


@dataclass(slots=True)
class Connection:
    """One greeting under way; instants are time.monotonic()."""

    name: str
    started: float
    sent: bool = False
    reply: bytearray = field(default_factory=bytearray)


class Load:
    """The connections of this process; `names` has one entry for each that has ended."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.names: dict[str, list[str]] = {kind: [] for kind in KINDS}
        self.since: dict[str, float] = {}
        self.open: dict[socket.socket, Connection] = {}
        self.selector = selectors.DefaultSelector()
        self.started = 0
        self.stopping = False
        self.next_start = 0.0
        self.slowest = 0.0

    def start(self, now: float) -> None:
        """Open one connection, without waiting for the answer."""
        connection = Connection(f"{self.options.prefix}{self.started}", now)
        self.started += 1
        self.next_start = now + self.options.interval
        sock, where = socket_for(self.options.address)
        sock.setblocking(False)
        self.open[sock] = connection
        code = sock.connect_ex(where)
        if code not in {0, errno.EINPROGRESS}:
            self.finish(sock, kind_of(code))
        else:
            self.selector.register(sock, selectors.EVENT_WRITE)

    def progress(self, sock: socket.socket) -> None:
        """Do what the socket is ready for."""
        connection = self.open[sock]
        try:
            if not connection.sent:
                if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self.finish(sock, kind_of(code))
                    return
                sock.sendall(connection.name.encode())
                sock.shutdown(socket.SHUT_WR)
                connection.sent = True
                self.selector.modify(sock, selectors.EVENT_READ)
                return
            if data := sock.recv(65536):
                connection.reply += data
                return
        except OSError as error:
            self.finish(sock, kind_of(error.errno))
            return
        wanted = f"Hello, {connection.name}\n".encode() if self.options.reply else b""
        self.finish(sock, "ok" if connection.reply == wanted else "silent")

    def finish(self, sock: socket.socket, kind: str) -> None:
        """Count a connection and close it."""
        connection = self.open.pop(sock)
        with contextlib.suppress(KeyError):
            self.selector.unregister(sock)
        sock.close()
        if kind == "timeout" and not connection.sent:
            kind = "unreached"
        self.names[kind].append(connection.name)
        now = time.monotonic()
        self.since.setdefault(kind, now)
        if kind == "ok":
            self.slowest = max(self.slowest, now - connection.started)

    def expire(self, now: float) -> None:
        """End the connections that have waited too long; the oldest come first."""
        for sock, connection in list(self.open.items()):
            if now - connection.started < self.options.timeout:
                return
            self.finish(sock, "timeout")

    def run(self) -> None:
        """Greet until `count` is reached or standard input ends."""
        self.selector.register(sys.stdin, selectors.EVENT_READ)
        going = False
        while not self.stopping or self.open:
            while self.may_start() and time.monotonic() >= self.next_start:
                self.start(time.monotonic())
            self.stopping = self.stopping or self.started == self.options.count
            if not going and self.started > len(self.open):
                going = True
                print("going", flush=True)
            for key, _ in self.selector.select(self.patience(time.monotonic())):
                if isinstance(key.fileobj, socket.socket):
                    self.progress(key.fileobj)
                else:
                    self.selector.unregister(key.fileobj)
                    self.stopping = True
            self.expire(time.monotonic())

    def may_start(self) -> bool:
        """Tell whether one more connection is wanted now or after the interval."""
        wanted = not self.stopping and self.started < self.options.count
        return wanted and len(self.open) < self.options.concurrency

    def patience(self, now: float) -> float:
        """Return how long nothing needs doing unless a descriptor says so."""
        deadlines = [one.started + self.options.timeout for one in list(self.open.values())[:1]]
        if self.may_start():
            deadlines.append(self.next_start)
        return max(0.0, min(deadlines, default=now) - now)


def kind_of(code: int | None) -> str:
    """Name the fate that an errno stands for."""
    match code:
        case errno.ECONNREFUSED | errno.ENOENT:
            return "refused"
        case errno.ECONNRESET | errno.EPIPE | errno.ENOTCONN:
            return "reset"  # ENOTCONN: it came between the sending and the half-close
        case errno.ETIMEDOUT:
            return "timeout"
        case _:
            return "error"


def main() -> None:
    """Run as told by the arguments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--interval", type=float, default=0.0, help="seconds between two starts")
    parser.add_argument("--timeout", type=float, default=10.0)
    parser.add_argument("--prefix", default=f"{os.getpid()}-", help="of each name")
    parser.add_argument("--reply", action="store_true", help="the greeting must come back")
    load = Load(parser.parse_args())
    load.run()
    result = {"names": load.names, "slowest": load.slowest, "since": load.since}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
