"""The protocol of the service manager: sends state, receives sockets and the watchdog's period.

Sources: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3), systemd.exec(5), of systemd 252.
The protocol is documented to be implemented without libsystemd; the Python packages for it are
stale or compiled.

Invariants: without systemd every function is a no-op. `notify` is called by the master's loop, so
it never raises and blocks for `SEND_TIMEOUT` seconds at most; `barrier` may block for its whole
timeout, and is for the start alone. Nothing here changes the environment; workers have lost these
variables (`environment`), so that none of them can send for the service.
"""

import array
import os
import select
import socket
import stat
from collections.abc import Collection, Mapping, Sequence

from greeterd.errors import ConfigError

FIRST_FD = 3  # SD_LISTEN_FDS_START
MAX_FDS = 4096  # far above any FileDescriptorStoreMax= in use; a larger LISTEN_FDS is garbage
MAX_FDS_PER_MESSAGE = 253  # SCM_MAX_FD of the kernel: more in one message is refused
SEND_TIMEOUT = 0.2  # seconds; the caller sends again later to a manager that reads no sooner


def notify(
    *assignments: str, environ: Mapping[str, str] = os.environ, fds: Collection[int] = ()
) -> bool:
    """Send `KEY=value` assignments in one datagram, with `fds` attached; True if it was sent.

    Never raises: a manager that has ended must not end the daemon. Newlines within an assignment
    become spaces, since each would begin another assignment.
    """
    path = environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False  # unset, or an address family that needs a virtual machine (vsock:)
    # "@" stands for the NUL byte of an abstract address.
    address = b"\0" + os.fsencode(path[1:]) if path.startswith("@") else os.fsencode(path)
    message = "\n".join(text.replace("\n", " ") for text in assignments)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(SEND_TIMEOUT)
            # Connected, because only then poll(2) reports the room in the receiver's queue.
            sock.connect(address)
            sock.sendmsg([message.encode(errors="backslashreplace")], rights)
    except OSError:
        return False
    return True


def notify_with_fds(
    name: str, fds: Sequence[int], *assignments: str, environ: Mapping[str, str] = os.environ
) -> bool:
    """Give `fds` to the manager's descriptor store under `name`; True if all were sent.

    `remove_fds` removes them. FDPOLL=0 keeps the manager from dropping a descriptor that reports
    EPOLLHUP, as a bound but not listening socket does.

    Raises: ValueError if `name` cannot be an FDNAME (1 to 255 printable ASCII characters, no
    colon); the manager would drop such a message silently.
    """
    if not (0 < len(name) <= 255 and name.isascii() and name.isprintable() and ":" not in name):  # noqa: PLR2004
        raise ValueError(f"not a name for the descriptor store: {name!r}")
    store = ("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", *assignments)
    batches = [fds[at : at + MAX_FDS_PER_MESSAGE] for at in range(0, len(fds), MAX_FDS_PER_MESSAGE)]
    return all(notify(*store, environ=environ, fds=batch) for batch in batches)


def remove_fds(name: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Have the manager close every descriptor that it keeps under `name`; True if it was sent."""
    return notify("FDSTOREREMOVE=1", f"FDNAME={name}", environ=environ)


def barrier(timeout: float, environ: Mapping[str, str] = os.environ) -> bool:
    """Wait until the manager has handled all earlier messages; False if it did not in time.

    sd_notify_barrier(3): it closes the descriptor that it is sent (systemd 246).
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            sent = notify("BARRIER=1", environ=environ, fds=[writer])
        finally:
            os.close(writer)
        poll = select.poll()
        poll.register(reader, 0)  # the hang-up is always reported
        return sent and bool(poll.poll(timeout * 1000))
    finally:
        os.close(reader)


def listen_fds(
    environ: Mapping[str, str] = os.environ, pid: int | None = None
) -> list[tuple[str, int]]:
    """Return (name, descriptor) of each socket that was passed to process `pid` (default: us).

    The descriptors are made close-on-exec. Without FileDescriptorName= the manager names a
    socket after its unit; a sender without names gives "unknown" (sd_listen_fds(3)).

    Raises: ConfigError if the variables are garbled or a descriptor is not an open socket.
    """
    if _number(environ, "LISTEN_PID") != (os.getpid() if pid is None else pid):
        return []  # not passed, or passed to our parent
    count = _number(environ, "LISTEN_FDS") or 0
    if count > MAX_FDS:
        raise ConfigError(f"LISTEN_FDS={count} is more than {MAX_FDS}")
    names = environ["LISTEN_FDNAMES"].split(":") if environ.get("LISTEN_FDNAMES") else []
    if names and len(names) != count:
        raise ConfigError(f"LISTEN_FDNAMES has {len(names)} names for LISTEN_FDS={count}")
    passed = list(zip(names or ["unknown"] * count, range(FIRST_FD, FIRST_FD + count), strict=True))
    for name, fd in passed:
        _check_socket(name, fd)
        os.set_inheritable(fd, False)
    return passed


def watchdog_usec(environ: Mapping[str, str] = os.environ, pid: int | None = None) -> int | None:
    """Return the microseconds within which WATCHDOG=1 must be repeated; None = no watchdog.

    sd_watchdog_enabled(3) recommends to send it after half of them.

    Raises: ConfigError if a variable is garbled.
    """
    meant_for = _number(environ, "WATCHDOG_PID")
    if meant_for not in {None, os.getpid() if pid is None else pid}:
        return None
    return _number(environ, "WATCHDOG_USEC") or None


def _number(environ: Mapping[str, str], variable: str) -> int | None:
    text = environ.get(variable)
    if not text:
        return None
    # int() alone would also take "-1", "1_000" and digits of other scripts.
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError(f"{variable} is not a number: {text!r}")
    return int(text)


def _check_socket(name: str, fd: int) -> None:
    try:
        mode = os.fstat(fd).st_mode
    except OSError as error:
        raise ConfigError(
            f"descriptor {fd} ({name}) from the service manager: {error.strerror}"
        ) from error
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"descriptor {fd} ({name}) from the service manager is not a socket")
