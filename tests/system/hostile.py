"""A worker that an attacker has taken over: honest until it finds an order, then it does a harm.

Run as a program (COMMAND), this is the daemon, but for the turn of a worker's loop: that looks for
an order, a file that names a harm. The master has no use for it, and is the one that is shipped;
the worker has the user, the descriptors and the memory of a real one.

A harm is a function of the worker, listed in HARMS by `harm`; it may return, end, or never end.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from greeterd.cli.greeterd import main
from greeterd.sockets import bpf, rights, steering
from greeterd.worker import counters
from greeterd.worker.loop import WorkerLoop
from greeterd.worker.messages import ExitMessage, LeavingMessage, Message, ReadyMessage
from tests.system import parents
from tests.system.harness import ROOT

COMMAND = (sys.executable, "-m", "tests.system.hostile")
_SO_LOCK_FILTER = 44  # asm-generic/socket.h
_ORDERS = "TEST_HOSTILE_ORDERS"


@dataclass(frozen=True, slots=True)
class Harm:
    """What is done, and how the master tells of it."""

    do: Callable[[WorkerLoop], None]
    reason: str
    """Part of what `event` says."""
    event: str = "worker exited"
    """Harms that no worker can be blamed for are mended, and do not end it."""


HARMS: dict[str, Harm] = {}


def harm(
    reason: str, event: str = "worker exited"
) -> Callable[[Callable[[WorkerLoop], None]], Callable[[WorkerLoop], None]]:
    """List a function as a harm, under its name; `reason` is part of what the master says."""

    def enter(do: Callable[[WorkerLoop], None]) -> Callable[[WorkerLoop], None]:
        HARMS[do.__name__.replace("_", "-")] = Harm(do, reason, event)
        return do

    return enter


SECRET = "TEST_SECRET_OF_ROOT"
"""What root has in its environment, by name."""
KEY = b"greeterd-test"
"""What root has in its session keyring, by description."""


# Orders -------------------------------------------------------------------------------------


class Orders:
    """The directory of the orders, one a slot; whoever takes an order removes it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def environment(self) -> dict[str, str]:
        """What the daemon has to be started with."""
        return {_ORDERS: str(self.directory), "PYTHONPATH": str(ROOT)}

    def give(self, slot: int, name: str, *, after: int) -> None:
        """Have the slot's worker do this harm when it has had so many connections.

        0: the slot's next worker, at its first turn.
        """
        draft = self.directory / "draft"
        draft.write_text(json.dumps({"harm": name, "after": after}))
        draft.chmod(0o644)
        draft.rename(self._file(slot))

    def taken(self, slot: int) -> bool:
        """Tell whether the harm is being done."""
        return not self._file(slot).exists()

    def take(self, slot: int, connections: int | None) -> str | None:
        """Return what a worker is to do now that has had so many connections; None: first turn."""
        with contextlib.suppress(FileNotFoundError):
            order = json.loads(self._file(slot).read_text())
            after = order["after"]
            if (connections is None) if after == 0 else (connections or 0) >= after:
                self._file(slot).unlink()
                return str(order["harm"])
        return None

    def _file(self, slot: int) -> Path:
        return self.directory / f"slot-{slot}"


@contextlib.contextmanager
def given_orders() -> Iterator[Orders]:
    """Give a directory for orders, which workers of any user can take."""
    # Not pytest's tmp_path, which others may not enter.
    with tempfile.TemporaryDirectory(prefix="greeterd-test-") as directory:
        Path(directory).chmod(0o777)
        yield Orders(Path(directory))


def _take_over(orders: Orders) -> None:
    """Replace the turn of the loop in every worker that this program forks."""
    honest = WorkerLoop.turn
    had: dict[int, int] = {}
    """The connections of the row before this worker's, by its pid."""

    def turn(worker: WorkerLoop) -> None:
        count, pid = worker._row[counters.CONNECTIONS], os.getpid()
        name = orders.take(worker._context.slot, count - had[pid] if pid in had else None)
        had.setdefault(pid, count)
        if name is not None:
            HARMS[name].do(worker)
        honest(worker)

    WorkerLoop.turn = turn  # type: ignore[assignment, method-assign]


# Harms: messages ----------------------------------------------------------------------------


def _socket(worker: WorkerLoop) -> socket.socket:
    return worker._context.channel._socket


def _send(worker: WorkerLoop, data: bytes, fds: Collection[int] = ()) -> None:
    refused = (
        errno.ETOOMANYREFS
    )  # one user's descriptors under way are counted, also other daemons'
    while refused == errno.ETOOMANYREFS:
        try:
            rights.send(_socket(worker), data, fds)
        except OSError as error:
            refused = error.errno or 0
        else:
            return


def _say(worker: WorkerLoop, message: Message, fds: list[int] | None = None) -> None:
    worker._context.channel.send(message, fds)


@harm("protocol error: not JSON")
def no_json(worker: WorkerLoop) -> None:
    _send(worker, b"\xff\x00\x1b]0;owned\x07")


@harm("protocol error: not JSON")
def nested_too_deep(worker: WorkerLoop) -> None:
    _send(worker, b'{"type":"ready","more":' + b"[" * 60_000)


@harm("protocol error: not a message")
def unknown_message(worker: WorkerLoop) -> None:
    _send(worker, json.dumps({"type": "\x1b[2J" * 1000}).encode())


@harm("protocol error: too long a message")
def too_long_a_message(worker: WorkerLoop) -> None:
    _send(worker, b'{"type":"exit"}' + b" " * 100_000)


@harm("protocol error: 'drain' is for the master to say")
def message_of_the_master(worker: WorkerLoop) -> None:
    _send(worker, b'{"type":"drain","how":"quick"}')


@harm("protocol error: 'ready' is not due")
def ready_twice(worker: WorkerLoop) -> None:
    _say(worker, ReadyMessage())


@harm("protocol error: 'returned 1' is not due")
def returned_unlent(worker: WorkerLoop) -> None:
    _send(worker, b'{"type":"returned","slot":1}')


@harm("protocol error: 'exit' is not due")
def exit_though_it_is_not_allowed(worker: WorkerLoop) -> None:
    for _ in range(5):
        _say(worker, ExitMessage())


@harm("protocol error: it has closed its channel")
def empty_message(worker: WorkerLoop) -> None:
    _send(worker, b"")


@harm("protocol error: it has closed its channel")
def closed_channel(worker: WorkerLoop) -> None:
    _socket(worker).shutdown(socket.SHUT_WR)


@harm("protocol error: 'leaving' is not due")
def flood(worker: WorkerLoop) -> None:
    while True:
        with contextlib.suppress(BlockingIOError):
            rights.send(_socket(worker), b'{"type":"leaving"}')


# Harms: counters ----------------------------------------------------------------------------


def _hang() -> NoReturn:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGABRT})
    while True:
        signal.pause()


@harm("its counters cannot be: ")
def the_most_there_is(worker: WorkerLoop) -> None:
    for cell in range(counters.CELLS):
        worker._row[cell] = 2**64 - 1
    _hang()


@harm("its counters cannot be: heartbeat_ns is ")
def heartbeat_to_come(worker: WorkerLoop) -> None:
    worker._row[counters.HEARTBEAT_NS] = time.monotonic_ns() + 3600 * 10**9
    _hang()


@harm("its counters cannot be: log_errno is ")
def error_number_of_no_kernel(worker: WorkerLoop) -> None:
    worker._row[counters.LOG_ERRNO] = 2**31
    _hang()


# Harms: descriptors -------------------------------------------------------------------------


@harm("protocol error: descriptors that are not due")
def descriptors_unasked(worker: WorkerLoop) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    while True:
        with contextlib.suppress(OSError):
            rights.send(_socket(worker), b'{"type":"leaving"}', [null] * rights.MAX_FDS)


@harm("protocol error: descriptors that are not due")
def descriptors_with_an_empty_message(worker: WorkerLoop) -> None:
    _send(worker, b"", [0, 1, 2])


def _lingering() -> tuple[int, list[socket.socket]]:
    """Return a connection whose last close(2) waits for an hour, and its other end."""
    listener = socket.create_server(("127.0.0.1", 0))
    sock = socket.create_connection(listener.getsockname())
    peer, _ = listener.accept()
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(b"x" * 65536)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    return sock.detach(), [listener, peer]


@harm("protocol error: descriptors that are not due")
def descriptors_that_linger(worker: WorkerLoop) -> None:
    kept = []
    for _ in range(10):
        fd, others = _lingering()
        _send(worker, b'{"type":"leaving"}', [fd])
        os.close(fd)
        kept.append(others)
    signal.pause()  # the other ends live on


@harm("protocol error: not JSON")
def descriptors_that_linger_behind_a_breach(worker: WorkerLoop) -> None:
    _send(worker, b"garbage")
    descriptors_that_linger(worker)


@harm("protocol error: descriptors that are not due")
def descriptors_of_all_kinds(worker: WorkerLoop) -> None:
    reader, writer = os.pipe()
    kinds = [reader, writer, os.memfd_create("any"), os.open("/", os.O_PATH), os.eventfd(0)]
    _send(worker, b'{"type":"leaving"}', [*kinds, *worker._acceptor.sources])


# Harms: the stack ---------------------------------------------------------------------------


def _stack_fd() -> int:
    names = {int(fd): Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}  # noqa: PTH208
    for fd, path in names.items():
        with contextlib.suppress(OSError):
            if "greeterd-stack" in str(path.readlink()):
                return fd
    raise AssertionError("a worker has a file for its stack")


@harm("killed by SIGABRT")
def sparse_stack(_worker: WorkerLoop) -> None:
    with contextlib.suppress(OSError):
        os.ftruncate(_stack_fd(), 2**45)
    os.abort()


@harm("killed by SIGKILL")
def long_stack(_worker: WorkerLoop) -> None:
    fd = _stack_fd()
    with contextlib.suppress(OSError):
        for at in range(0, 2**24, 2**16):
            os.pwrite(fd, b"\x1b\xff" * 2**15, at)
    os.kill(os.getpid(), signal.SIGKILL)


# Harms: what is shared ----------------------------------------------------------------------


def _shared(worker: WorkerLoop) -> list[socket.socket]:
    """Return the listeners, or of a worker that is handed its connections, the socketpair."""
    return [source.sock for source in worker._acceptor.sources.values()]


@harm("shut down", "listener meddled with")
def shut_listener(worker: WorkerLoop) -> None:
    for sock in _shared(worker):
        sock.shutdown(socket.SHUT_RDWR)


def drop_everything(sock: socket.socket, *, for_good: bool = False) -> None:
    """Have a filter drop all that arrives; `for_good`: so that it cannot be taken off again."""
    steering._attach(sock, steering.SO_ATTACH_FILTER, ((bpf.RETURN, 0, 0, 0),))
    if for_good:
        sock.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)


@harm("changed", "listener meddled with")
def changed_listener(worker: WorkerLoop) -> None:
    for sock in _shared(worker):
        sock.setblocking(True)
        # Have everything dropped that arrives, for good. Of TCP newer kernels ask for capabilities.
        with contextlib.suppress(PermissionError):
            drop_everything(sock, for_good=True)
        if sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            continue
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 500)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 9)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        sock.listen(1)


@harm("killed by SIGKILL")
def held_locks(worker: WorkerLoop) -> None:
    """Hold every lock on every log, and on whatever else is open."""
    logs = [os.open(path, os.O_RDWR) for path in worker._context.config.log_dir.iterdir()]
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            fcntl.flock(int(name), fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):
            fcntl.lockf(int(name), fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert logs
    _hang()


@harm("killed by SIGKILL")
def torn_lines_of_siblings(worker: WorkerLoop) -> None:
    """Leave half a line in every log, as a writer that lives and will go on."""
    for path in worker._context.config.log_dir.iterdir():
        fd = os.open(path, os.O_RDWR | os.O_APPEND)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(fd, b'{"event":')
    _hang()


# Harms: what root has -----------------------------------------------------------------------


_SESSION = -3  # keyctl(2), KEY_SPEC_SESSION_KEYRING


def _syscall(name: str, *arguments: object) -> int:
    number = parents.SYSCALLS[os.uname().machine][name]
    return int(ctypes.CDLL(None).syscall(number, *arguments))


def _add_key() -> None:
    """Have a session keyring with a key, as a login of root has."""
    _syscall("keyctl", 1, None)  # KEYCTL_JOIN_SESSION_KEYRING
    _syscall("add_key", b"user", KEY, b"secret", 6, _SESSION)
    assert _has_key()


def _has_key() -> bool:
    return _syscall("keyctl", 10, _SESSION, b"user", KEY, 0) > 0  # KEYCTL_SEARCH


def _succeeds(do: Callable[[], object]) -> bool:
    with contextlib.suppress(OSError):
        do()
        return True
    return False


@harm("killed by SIGABRT")
def grabs_what_root_has(worker: WorkerLoop) -> None:
    """Leave with status 99 when anything of the master's can be had."""
    master = os.getppid()
    attempts: list[Callable[[], object]] = [
        lambda: os.setresuid(0, 0, 0),
        lambda: os.setgroups([0]),
        lambda: os.kill(master, signal.SIGTERM),
        lambda: Path(f"/proc/{master}/environ").read_bytes(),
        lambda: Path(f"/proc/{master}/mem").open("rb").close(),
        lambda: os.listdir(f"/proc/{master}/fd"),  # noqa: PTH208
        lambda: os.chroot("/"),
        lambda: (worker._context.config.run_dir / "planted").write_bytes(b""),
    ]
    had = [at for at, attempt in enumerate(attempts) if _succeeds(attempt)]
    if _has_key() or SECRET in os.environ:
        had.append(len(attempts))
    if had:
        os._exit(99)
    os.abort()


# Harms: what is allowed ---------------------------------------------------------------------


@harm("exit status 0")
def leaves_at_once(worker: WorkerLoop) -> None:
    _say(worker, LeavingMessage())
    os._exit(0)


if __name__ == "__main__":
    os.environ[SECRET] = "do not tell"
    _add_key()
    _take_over(Orders(Path(os.environ[_ORDERS])))
    main()
