"""Handoff pairs for the tests."""

import contextlib
import socket

from greeterd.sockets.fd_passing import HandoffPair, hand_over


def fill(pair: HandoffPair, connection: socket.socket) -> int:
    """Hand over until there is no room; return how many there were."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            hand_over(pair.entry, connection.fileno(), "someone")
            count += 1
    return count
