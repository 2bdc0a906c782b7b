"""Clients and groups of listeners for the tests of sockets; all on loopback."""

import selectors
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack

from greeterd.sockets import bpf, steering
from greeterd.sockets.address import Address
from greeterd.sockets.listener import guard_address, local_address, open_member, open_shared
from greeterd.sockets.sockdiag import handshakes

ANY_PORT = Address(host="127.0.0.1", port=0)
_TCP_SYN_SENT = 2
_SO_DETACH_FILTER = 27


def keep_port(opened: ExitStack, host: str) -> Address:
    """Return an address that stays free for the test to bind, and for nobody else.

    A socket that has only bound, with SO_REUSEADDR, is in nobody's way who sets that option too;
    but the kernel gives its port to no connection of the machine's other programs.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    keeper = opened.enter_context(sock)
    if keeper.family == socket.AF_INET6:
        keeper.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind((host, 0))
    return local_address(keeper)


def shared(opened: ExitStack, address: Address = ANY_PORT, backlog: int = 64) -> socket.socket:
    """Open a shared listener that the test closes."""
    return opened.enter_context(open_shared(address, backlog=backlog, unix_mode=0o600))


def group(opened: ExitStack, count: int, address: Address = ANY_PORT) -> list[socket.socket]:
    """Open a guard and `count` members that listen, in the order of the list."""
    guard = opened.enter_context(guard_address(address))
    members = [opened.enter_context(open_member(local_address(guard))) for _ in range(count)]
    for member in members:
        member.listen(1024)
    return members


def connecting(
    opened: ExitStack,
    listener: socket.socket,
    *,
    deaf: bool = False,
    over: tuple[str, int] | None = None,
) -> socket.socket:
    """Start to connect, `over` IPv4 if given.

    A deaf client hears no answer, so its handshake stays half open.
    """
    family = socket.AF_INET if over else listener.family
    client = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
    client.setblocking(False)
    if deaf:
        steering._attach(client, steering.SO_ATTACH_FILTER, ((bpf.RETURN, 0, 0, 0),))
    client.connect_ex(over or listener.getsockname())
    return client


def hear(client: socket.socket) -> None:
    """Let a deaf client hear; the kernel of the server repeats its answer within a second."""
    client.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def connected(client: socket.socket) -> bool:
    """Whether the client's handshake is done. Raises: OSError if it was refused."""
    error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, "the connection was refused")
    return not unanswered(client)


def half_open(*addresses: Address) -> int:
    """Return how many handshakes with these addresses are under way."""
    return sum(map(len, handshakes(addresses)))


def unanswered(client: socket.socket) -> bool:
    """Whether the client still waits for the answer to its SYN."""
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return info[0] == _TCP_SYN_SENT


def takers(listeners: Sequence[socket.socket], connections: int) -> Counter[int]:
    """Connect `connections` times, one after the other; count who got them, by index."""
    with selectors.DefaultSelector() as selector:
        for index, listener in enumerate(listeners):
            selector.register(listener, selectors.EVENT_READ, index)
        count: Counter[int] = Counter()
        for _ in range(connections):
            with socket.create_connection(listeners[0].getsockname()[:2]):
                ((key, _), *more) = selector.select(10.0)
                assert not more
                listeners[key.data].accept()[0].close()
            count[key.data] += 1
    return count
