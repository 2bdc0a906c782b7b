"""Control commands over a unix socket: the server in the master's loop, and ask() for programs.

`protocol` has the lines, and every command with its arguments.
"""

from greeterd.control.client import (
    ControlError,
    NoAnswerError,
    NotPermittedError,
    NotRunningError,
    ask,
    connect,
    exchange,
)
from greeterd.control.server import ControlServer, Request
from greeterd.control.unix_socket import listeners
from greeterd.system.socket_file import Peer, peer_of

__all__ = [
    "ControlError",
    "ControlServer",
    "NoAnswerError",
    "NotPermittedError",
    "NotRunningError",
    "Peer",
    "Request",
    "ask",
    "connect",
    "exchange",
    "listeners",
    "peer_of",
]
