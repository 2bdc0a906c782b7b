"""Detaches the daemon, and reports to the shell whether it became ready, or why not.

Order: the caller validates the configuration, then `launch` forks once; the launcher waits at a
pipe; its child opens python-daemon's DaemonContext and calls `run`, which takes the run lock,
listens and starts workers. The shell's command ends when the daemon has reported that it is ready,
or failed and why: a line and an exit code.
DaemonContext detaches (two forks and a session), sets the umask and the working directory, and
closes or redirects descriptors. In the foreground it is not used: there these are the parent's.

Records on the pipe, each ended by a NUL byte: "pid N", then "ready" or "failed CODE REASON".
"""

import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial

from greeterd.errors import ConfigError, GreeterdError, ResourceError, failure_of
from greeterd.system import signals
from greeterd.system.escape import escape_lines
from greeterd.system.rlimits import open_descriptors

STANDARD_FDS = (0, 1, 2)
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


class Readiness:
    """The daemon's reports to the process that waits for its start.

    `fd` is the pipe to the launcher, None in the foreground and after `ready` or `failed`. A worker
    that is forked before `ready` calls `close`, or the launcher would not see the master's death.
    """

    __slots__ = ("detached", "fd")

    def __init__(self, fd: int | None = None) -> None:
        self.fd = fd
        self.detached = fd is not None

    def started(self) -> None:
        """Report the pid that an interrupted launcher has to stop."""
        self._report(f"pid {os.getpid()}")

    def ready(self) -> None:
        """Report that clients are served: the launcher exits 0."""
        self._report("ready")
        self.close()

    def failed(self, code: int, reason: str) -> None:
        """Report exit code and reason to the launcher; in the foreground, the reason to stderr.

        Detached, this does nothing after `ready`: write to the daemon log then.
        """
        if not self.detached:
            _complain(reason)
        self._report(f"failed {code} {reason}")
        self.close()

    def close(self) -> None:
        """Close the pipe; without a report before, the launcher takes it for a death."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def _report(self, record: str) -> None:
        if self.fd is not None:
            data = record.replace("\0", "").encode(errors="backslashreplace") + b"\0"
            with suppress(BrokenPipeError):  # a killed launcher does not hinder the start
                while data:
                    data = data[os.write(self.fd, data) :]


def launch(
    run: Callable[[Readiness], int],
    *,
    detach: bool,
    umask: int,
) -> int:
    """Call `run` with the umask set, detached if asked; return the exit code for `sys.exit`.

    Detached, this returns in two processes: in the launcher as soon as the daemon has reported
    (0 = ready), and in the daemon when `run` is over. `run` begins with "/" as its directory,
    /dev/null as its standard streams, and the descriptors that this program opened itself (those
    are close-on-exec, PEP 446). What was inherited through exec is closed, so that no process waits
    for the end of it.

    An interrupt at the waiting launcher sends the daemon TERM, a second one QUIT; the launcher
    goes on waiting for the end and returns 130. A launcher that is killed leaves the start alone.

    Raises: ConfigError if it is to detach as PID 1.
    """
    if detach and os.getpid() == 1:
        # The launcher's end would be the end of the container, or a panic of the kernel.
        raise ConfigError("daemonize: PID 1 cannot detach, run in the foreground")
    _open_standard_streams()
    if not detach:
        os.umask(umask)
        return _run(run, Readiness())
    # Only here: it asks for limits when it is imported, and the foreground needs none of it. Before
    # the fork: where it is not installed, this process says so.
    import daemon  # noqa: F401, PLC0415

    reader, writer = os.pipe()
    # A ^C at the terminal reaches the child too until it has left the session: the launcher alone
    # decides what becomes of it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    child = os.fork()
    if child == 0:
        os.close(reader)
        return _run_detached(run, Readiness(writer), umask, mask)
    os.close(writer)
    signals.interrupt()
    try:
        return _wait_for_report(reader)
    finally:
        os.close(reader)
        with suppress(ChildProcessError):  # SIGCHLD may be ignored, inherited from our parent
            os.waitpid(child, 0)  # it left at DaemonContext's first fork
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _run(run: Callable[[Readiness], int], readiness: Readiness) -> int:
    try:
        return run(readiness)
    except (GreeterdError, OSError) as error:
        failure = failure_of(error)
        readiness.failed(failure.exit_code, str(failure))
        return failure.exit_code


def _run_detached(
    run: Callable[[Readiness], int],
    readiness: Readiness,
    umask: int,
    mask: Collection[signal.Signals | int],
) -> int:
    try:
        code = _run(partial(_detach_and_run, run, umask, mask), readiness)
    except Exception:
        # The process's main: stderr is /dev/null, so only the launcher can show it.
        readiness.failed(GreeterdError.exit_code, traceback.format_exc())
        raise
    if readiness.fd is not None:
        readiness.failed(code or GreeterdError.exit_code, "stopped before it was ready")
    return code


def _detach_and_run(
    run: Callable[[Readiness], int],
    umask: int,
    mask: Collection[signal.Signals | int],
    readiness: Readiness,
) -> int:
    _detach(umask)
    readiness.started()
    signals.leave_terminal()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return run(readiness)


def _detach(umask: int) -> None:
    """Detach for good: the context is never closed, its end is the process's end.

    Every argument that has a default is given, because the defaults are traps: `signal_map`
    would install a TERM handler that raises, `umask` would be 0, `detach_process` guesses,
    `prevent_core` would hide crashes, and ids are ours to change (greeterd.system.privileges).
    DaemonContext's atexit hook does nothing without a pidfile, and workers end by os._exit.

    Raises: ResourceError: the system refuses a step of it.
    """
    from daemon.daemon import DaemonContext, DaemonError  # noqa: PLC0415  # see launch

    with open(os.devnull, "r+b", buffering=0) as null:  # noqa: PTH123
        context = DaemonContext(
            working_directory="/",
            umask=umask,
            uid=os.geteuid(),
            gid=os.getegid(),
            initgroups=False,
            prevent_core=False,
            detach_process=True,
            files_preserve=_own_descriptors(),
            pidfile=None,
            # With None it opens /dev/null as 0, 1 and 2 itself, close-on-exec: after an exec these
            # numbers would be free, and the next socket would become the stderr of some program.
            stdin=null,
            stdout=null,
            stderr=null,
            signal_map={},
        )
        try:
            context.open()
        except DaemonError as error:
            raise ResourceError(f"cannot detach: {error}") from error


def _wait_for_report(reader: int) -> int:
    """Read the pipe's records until one decides; SIGINT is blocked outside of `_readable`."""
    received = b""
    pid = interrupts = sent = 0
    while True:
        if _readable(reader):
            data = os.read(reader, 65536)
            if not data:
                return _end(INTERRUPTED if interrupts else 70, "died before it was ready")
            received += data
        else:
            interrupts += 1
        *records, received = received.split(b"\0")
        for record in records:
            word, _, rest = record.decode().partition(" ")
            match word:
                case "pid":
                    pid = int(rest)
                case "ready":
                    return _end(INTERRUPTED, "interrupted") if interrupts else 0
                case _:
                    code, _, reason = rest.partition(" ")
                    return _end(INTERRUPTED if interrupts else int(code), reason)
        if pid and sent < interrupts:
            # The pid cannot be another's: its pipe had no end-of-file yet.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT if sent else signal.SIGTERM)
            sent = interrupts


def _readable(fd: int) -> bool:
    """Wait for `fd`; False = interrupted. Nothing is read here, so an interrupt loses nothing."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        select.select([fd], [], [])
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    except KeyboardInterrupt:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        return False
    return True


def _end(code: int, reason: str) -> int:
    _complain(reason)
    return code


def _complain(reason: str) -> None:
    sys.stderr.write(f"greeterd: {escape_lines(reason.rstrip())}\n")
    sys.stderr.flush()


def _own_descriptors() -> list[int]:
    """Return the close-on-exec descriptors: those that this program opened."""
    return [fd for fd in open_descriptors() if not os.get_inheritable(fd)]


def _open_standard_streams() -> None:
    """Give 0, 1 and 2 to /dev/null where they are closed (`greeterd --daemonize <&-`).

    Else a socket of ours would take the number, and a traceback would be sent to a client.
    DaemonContext needs all three stream objects besides.
    """
    fd = os.open(os.devnull, os.O_RDWR)
    while fd in STANDARD_FDS:
        os.set_inheritable(fd, True)
        fd = os.open(os.devnull, os.O_RDWR)
    os.close(fd)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
