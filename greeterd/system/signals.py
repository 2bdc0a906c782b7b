"""Signals as bytes on a wakeup descriptor; the only module that installs handlers.

The C-level handler of CPython writes the signal's number into a pipe; nothing else ever happens
in a handler. `blocked` must surround every fork: until the child has closed the shared pipe, a
signal sent to the child would be read by the parent.

The order of a start ("held" is blocked, to be delivered later):

    take_over   resets what was inherited; HUP, USR1 and the like, which ask something of a running
                daemon, are held from here on; TERM, INT and QUIT end the process, since the
                configuration or a slow resolver may still block
    hold        all of the master's signals, before our pid is published; nothing blocks any more
    SignalPipe  installs the handlers
    release     when the loop turns: what was held is delivered

An upgrade executes its next image with everything held, which starts in that state.
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Final

MASTER_SIGNALS: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCHLD,
)
ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
"""They end a start before the pid is published; the others are held until the daemon serves."""
KEYS: Final = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP})
"""The keys of a terminal. A parent that starts us with these ignored, as a shell does for
`greeterd &` in a script, means them for others (POSIX, 2.12 Signals and Error Handling)."""
COUNTED: Final = frozenset({signal.SIGINT, signal.SIGTTIN, signal.SIGTTOU})
"""Two of these mean more than one; several of any other mean the same as one."""
WORKER_SIGNALS: Final = (signal.SIGTERM,)
"""A worker drains on TERM; the rest of the master's signals it ignores, since a terminal sends
INT and QUIT to the whole foreground group and the master alone decides what they mean."""

PROD: Final = 0.02
"""Seconds after which `prodded` interrupts a wait in the kernel."""

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_LIBC: Final = ctypes.CDLL(None)  # opened once: some peers of `bench` call prctl(2) often


class SignalPipe:
    """The signals that have arrived, in order; readable when there is one."""

    def __init__(self, signals: tuple[signal.Signals, ...]) -> None:
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # A full pipe means that signals are waiting already; more of them add nothing.
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in signals:
            if number not in KEYS or not _is_ignored(number):
                signal.signal(number, _ignore_in_python)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._read_fd

    @property
    def fds(self) -> tuple[int, int]:
        """Both ends of the pipe."""
        return self._read_fd, self._write_fd

    def read(self) -> list[signal.Signals]:
        """Return the signals that have arrived since the last call; never blocks.

        Only those in COUNTED are returned more than once.
        """
        try:
            numbers = os.read(self._read_fd, 4096)
        except BlockingIOError:
            return []
        arrived: list[signal.Signals] = []
        for number in map(signal.Signals, numbers):
            if number is signal.SIGALRM:
                continue  # of `prodded`: interrupting was all it is for
            if number in COUNTED or number not in arrived:
                arrived.append(number)
        return arrived

    def put_back(self) -> None:
        """Send what has arrived again, while it is held: the next image receives it."""
        for number in self.read():
            os.kill(os.getpid(), number)

    def close(self) -> None:
        """Close the pipe; the handlers stay, and do nothing."""
        signal.set_wakeup_fd(-1)
        os.close(self._read_fd)
        os.close(self._write_fd)


def take_over(*, successor: bool) -> None:
    """Reset the signal mask and the dispositions that this process began with.

    Blocked are only the signals that we hold, whatever the parent had blocked. Ignored are only the
    keys of a terminal that the parent had ignored, and PIPE and XFSZ, which CPython ignores: an
    ignored CHLD would reap our children for us. HUP reloads also under nohup(1); it is no key.
    INT ends the process in C, not by an exception that waits until a name is resolved.
    `successor`: the predecessor in this process has held all signals; they stay held.
    """
    held = {*MASTER_SIGNALS} if successor else {*MASTER_SIGNALS} - ENDING
    signal.pthread_sigmask(signal.SIG_SETMASK, held)
    kept = {*KEYS, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGKILL, signal.SIGSTOP}
    for number in signal.valid_signals() - kept:
        if _is_ignored(number):
            signal.signal(number, signal.SIG_DFL)
    if not _is_ignored(signal.SIGINT):
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def leave_terminal() -> None:
    """Stop ignoring INT, QUIT and TSTP: they come from no terminal any more."""
    for number in KEYS:
        signal.signal(number, signal.SIG_DFL)


def interrupt() -> None:
    """Have INT raise KeyboardInterrupt, unless it is ignored."""
    if not _is_ignored(signal.SIGINT):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Hold back the master's signals, in the parent and in a child that is forked inside."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, MASTER_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def prodded() -> Iterator[None]:
    """Interrupt every wait in the kernel after PROD seconds.

    close(2) of a socket that an untrusted process has sent may wait for as long as that one likes:
    SO_LINGER, and a peer that does not read. So may closing the last copy of a message in which
    such a socket is still queued. A signal ends the wait, and the kernel closes without it.
    """
    before = signal.signal(signal.SIGALRM, _ignore_in_python)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, PROD, PROD)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGALRM, before)


def hold() -> None:
    """Block the master's signals until `release`, here or in the next image of this process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, MASTER_SIGNALS)


def release() -> None:
    """Unblock the master's signals."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, MASTER_SIGNALS)


def become_worker() -> SignalPipe:
    """Replace the master's pipe and handlers by a worker's; call it once, before unblocking."""
    signal.set_wakeup_fd(-1)
    for number in MASTER_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pipe = SignalPipe(WORKER_SIGNALS)
    release()
    return pipe


def _ignore_in_python(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the byte on the wakeup descriptor is all that is needed."""


def terminate_as_interrupt() -> None:
    """Make TERM, QUIT and HUP raise KeyboardInterrupt, as INT does, so that a program cleans up.

    An ignored HUP stays ignored: nohup(1) has asked for that.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def die_with_parent(number: signal.Signals, parent: int | None = None) -> None:
    """Have the kernel send this process a signal when the thread that started it ends (prctl(2)).

    The signal comes at once if the process is no longer the child of `parent`.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number))
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)
