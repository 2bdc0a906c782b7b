"""A crowd of clients of every kind, good and bad, many at a time: what each does is random.

Run by hand as `python -m tests.system.crowd ADDRESS [COUNT [SEED]]`: prints what the daemon must
have counted, which is exact for every kind of client here. The daemon needs `reply = true`, the
default limit of a name, `allow_exit = false`, and a `client_timeout` longer than any pause of
this process.
"""

import asyncio
import random
import socket
import struct
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.system.clients import socket_for

LIMIT = 4096
ABREAST = 64
RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, 0 s: close(2) sends RST instead of FIN
PATIENCE = 30.0  # seconds until an answer that does not come is an error
NEWLINES = (b"", b"\n", b"\r\n")


@dataclass
class Crowd:
    """What the clients have done so far, as the daemon must have counted it."""

    address: str
    dice: random.Random
    outcomes: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def run(self, count: int) -> None:
        """Let `count` clients come, ABREAST at a time."""
        left = iter(range(count))

        async def come() -> None:
            for _ in left:
                kind = self.dice.choices(KINDS, WEIGHTS)[0]
                try:
                    await asyncio.wait_for(self.visit(kind), PATIENCE)
                except (OSError, TimeoutError, AssertionError) as error:
                    self.wrong.append(f"{kind.__name__}: {error!r}")

        await asyncio.gather(*(come() for _ in range(ABREAST)))

    async def visit(self, kind: "Kind") -> None:
        """Connect, and do what the kind does."""
        sock, where = socket_for(self.address)
        with sock:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, where)
            self.outcomes[await kind(self, sock)] += 1

    def name(self) -> bytes:
        """Return a random name: words, any bytes, or one that means something to somebody."""
        match self.dice.randrange(4):
            case 0:
                return self.dice.choice(MEANINGFUL)
            case 1:
                return self.dice.randbytes(self.dice.randint(1, 300)).rstrip(b"\r\n") or b"x"
            case 2:
                return (
                    "".join(self.dice.choices('aé漢🐍\u202e\x00\x1b"\\\n ', k=20)).encode() + b"."
                )
            case _:
                return b"client %d" % self.dice.randrange(10**9)

    async def hear(self, sock: socket.socket, name: bytes) -> None:
        """Half-close, and see that the name comes back."""
        sock.shutdown(socket.SHUT_WR)
        heard = b""
        while data := await asyncio.get_running_loop().sock_recv(sock, 65536):
            heard += data
        text = name.decode(errors="backslashreplace")
        assert heard == f"Hello, {text}\n".encode(), (name, heard)
        self.names[text] += 1


Kind = Callable[[Crowd, socket.socket], Awaitable[str]]
"""Does what such a client does, and returns how it must have been counted."""


async def greet(crowd: Crowd, sock: socket.socket) -> str:
    """Send a name, in one piece, and hear it."""
    name = crowd.name()
    await send(sock, name + crowd.dice.choice(NEWLINES))
    await crowd.hear(sock, name)
    return "greetings"


async def greet_slowly(crowd: Crowd, sock: socket.socket) -> str:
    """Send a name byte by byte."""
    name = crowd.name()[:8].rstrip(b"\r\n") or b"x"
    for number in range(len(name)):
        await send(sock, name[number : number + 1])
        await asyncio.sleep(crowd.dice.random() * 0.005)
    await crowd.hear(sock, name)
    return "greetings"


async def greet_and_go(crowd: Crowd, sock: socket.socket) -> str:
    """Send a name and close, and leave the answer unread."""
    name = crowd.name()
    await send(sock, name)
    crowd.names[name.decode(errors="backslashreplace")] += 1
    return "greetings"


async def greet_at_length(crowd: Crowd, sock: socket.socket) -> str:
    """Send the longest name there may be, in a few pieces."""
    name = crowd.dice.choice((b"x", b"\xff")) * LIMIT
    cut = crowd.dice.randrange(LIMIT)
    await send(sock, name[:cut])
    await asyncio.sleep(0)
    await send(sock, name[cut:] + crowd.dice.choice(NEWLINES))
    await crowd.hear(sock, name)
    return "greetings"


async def say_too_much(crowd: Crowd, sock: socket.socket) -> str:
    """Send more than a name may have; the end is a reset, at the latest when reading."""
    stream = b"y" * (LIMIT + crowd.dice.choice((3, 4, 1000, 100_000)))
    try:
        await send(sock, stream)
        end = await asyncio.get_running_loop().sock_recv(sock, 1)
    except (ConnectionResetError, BrokenPipeError):
        return "oversize"
    raise AssertionError(f"too long a name ended with {end!r}")


async def say_too_much_at_last(crowd: Crowd, sock: socket.socket) -> str:
    """Send one byte too many, which only the end of the stream shows."""
    await send(sock, b"y" * (LIMIT + 1) + crowd.dice.choice(NEWLINES))
    try:
        sock.shutdown(socket.SHUT_WR)
        end = await asyncio.get_running_loop().sock_recv(sock, 1)
    except OSError:  # ENOTCONN from the half-close, if the reset was faster
        return "oversize"
    raise AssertionError(f"too long a name ended with {end!r}")


async def probe(crowd: Crowd, sock: socket.socket) -> str:
    """Connect and close, as a load balancer does; or say nothing but a newline."""
    await send(sock, crowd.dice.choice(NEWLINES))
    return "empty"


async def probe_with_reset(_crowd: Crowd, sock: socket.socket) -> str:
    """Connect and reset, as a load balancer in a hurry does."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    return "reset"


async def break_off(crowd: Crowd, sock: socket.socket) -> str:
    """Begin a name, and reset."""
    await send(sock, crowd.name())
    await asyncio.sleep(crowd.dice.choice((0.0, 0.002)))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    return "reset"


async def fall_silent(crowd: Crowd, sock: socket.socket) -> str:
    """Begin a name or not, and wait until the daemon has had enough."""
    await send(sock, crowd.dice.choice((b"", b"half a na")))
    end = await asyncio.get_running_loop().sock_recv(sock, 1)
    assert end == b"", end
    return "timeout"


async def send(sock: socket.socket, data: bytes) -> None:
    """Send all, nothing for no data."""
    if data:
        await asyncio.get_running_loop().sock_sendall(sock, data)


SHARES: dict[Kind, float] = {
    greet: 40, greet_slowly: 5, greet_and_go: 10, greet_at_length: 5,
    say_too_much: 5, say_too_much_at_last: 3, probe: 15, probe_with_reset: 8, break_off: 8,
    fall_silent: 0.2,
}  # fmt: skip
KINDS, WEIGHTS = tuple(SHARES), tuple(SHARES.values())

MEANINGFUL = (
    b"exit", b"GET / HTTP/1.1", b"\x16\x03\x01\x02\x00", b"\x1b[2J", b"'; DROP TABLE", b"\x00",
    b'{"event":"greeting"}', b'"', b"\\", b"\xed\xa0\x80", b"\xff\xfe", b"\xc3", b"\\xff", b"\x7f",
    b"\xe2\x80\xa8", b"a\nb", b" ",
)  # fmt: skip


def come(address: str, count: int, seed: int) -> Crowd:
    """Let a crowd of `count` come and go; return what it did."""
    crowd = Crowd(address, random.Random(seed))
    asyncio.run(crowd.run(count))
    return crowd


if __name__ == "__main__":
    done = come(sys.argv[1], *map(int, [*sys.argv[2:4], "5000", "1"][:2]))
    print(dict(done.outcomes), done.wrong or "")
