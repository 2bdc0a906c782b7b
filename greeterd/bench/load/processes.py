"""The sending processes of a load: starts them, has them begin together, collects what they did.

They are programs of their own (no fork of this one), told by JSON lines over their standard input
and output.  Leaving the `with` block ends them, whatever has happened: at the end of their input
they end by themselves, and who does not is killed.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic_ns
from types import TracebackType
from typing import Final, Self

import msgspec

from greeterd.bench.load.messages import Order, Phase, Said, Tally
from greeterd.errors import GreeterdError

START_DELAY_NS: Final = 3_000_000
"""From the word to the start: enough for all processes to have read it."""
LOOK: Final = 0.05
"""Seconds between two looks at what the load is for, while it runs."""
PATIENCE: Final = 5.0
"""Seconds for a process to end after its input has ended."""

_ROOT: Final = str(Path(__file__).resolve().parents[3])
# -P and the path's end: what lies in the working directory, or beside this package, must not be
# taken for a module of the standard library.
_PROGRAM: Final = (
    f"import sys; sys.path.append({_ROOT!r});"
    "from greeterd.bench.load.process import main; sys.exit(main())"
)


Books = list[tuple[Tally, "array[int]"]]
"""By process: what it did in a phase, and its latencies in nanoseconds."""


class LoadProcessError(GreeterdError):
    """A sending process ended before its time (EX_SOFTWARE)."""

    exit_code = 70


class NobodyListens(Exception):  # noqa: N818 - a fact on the way to an error that names the address
    """No process could make its first connection; the text is why."""


@dataclass(slots=True, eq=False)
class _Member:
    """One process, and what it has said."""

    process: "subprocess.Popen[bytes]"
    buffer: bytearray = field(default_factory=bytearray)
    said: Said = field(default_factory=Said)
    tally: Tally | None = None
    latencies: "array[int] | None" = None
    """Of the last phase, once it has ended and all of them have come."""
    answered: bool = False
    """It was told to go on although its first connection failed."""

    @property
    def out(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    @property
    def is_idle(self) -> bool:
        return self.said.ready and self.latencies is not None

    def say(self, line: bytes) -> None:
        """Write a line; a process that has gone is noticed by its own silence."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            os.write(self.process.stdin.fileno(), line + b"\n")

    def begin(self, phase: Phase) -> None:
        """Have it run a phase."""
        self.said = msgspec.structs.replace(self.said, ready=False, tally=None, latencies=0)
        self.tally = self.latencies = None
        self.say(msgspec.json.encode(phase))

    def hear(self) -> bool:
        """Take what it has said; False at the end of its output."""
        data = os.read(self.out, 1 << 20)
        self.buffer += data
        while self.tally is None and b"\n" in self.buffer:
            line, _, rest = self.buffer.partition(b"\n")
            self.buffer = rest
            self.said = msgspec.json.decode(line, type=Said)
            self.tally = self.said.tally
        size = 8 * self.said.latencies
        if self.tally is not None and self.latencies is None and len(self.buffer) >= size:
            self.latencies = array("Q", bytes(self.buffer[:size]))
            del self.buffer[:size]
        return bool(data)


class Processes:
    """The sending processes of one target; a context manager."""

    def __init__(
        self, orders: Sequence[Order], tell: Callable[[int], None], look: Callable[[], None]
    ) -> None:
        """Start them; `tell` hears how many greetings have ended, `look` is called every LOOK."""
        self._tell, self._look = tell, look
        self._members: list[_Member] = []
        self._poll = select.poll()
        try:
            for order in orders:
                self._members.append(_Member(_start()))
                self._members[-1].say(msgspec.json.encode(order))
                self._poll.register(self._members[-1].out, select.POLLIN)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return it; the processes may not have begun to listen."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End them."""
        self.close()

    def close(self) -> None:
        """End all processes: by the end of their input, then by force (blocking)."""
        for member in self._members:
            assert member.process.stdin is not None
            assert member.process.stdout is not None
            member.process.stdin.close()
            member.process.stdout.close()
        for member in self._members:
            try:
                member.process.wait(PATIENCE)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                member.process.kill()
                member.process.wait()

    def await_ready(self) -> None:
        """Wait until all processes wait for a phase (blocking).

        Raises:
            NobodyListens: the first connection of each has failed.
            LoadProcessError: one of them has died.
        """
        while not all(member.said.ready for member in self._members):
            self._hear()
            self._judge_unreached()

    def run(self, phases: Sequence[Phase]) -> Books:
        """Have each process run its phase, from one instant on, and wait (blocking).

        Return what each did, and its latencies in ns.  Of a phase given here `start_ns` is a pause
        before the start, the same for all, and `until_ns` counts from the start.
        Raises as `await_ready`.
        """
        start = monotonic_ns() + START_DELAY_NS + phases[0].start_ns
        for member, phase in zip(self._members, phases, strict=True):
            until = None if phase.until_ns is None else start + phase.until_ns
            member.begin(msgspec.structs.replace(phase, start_ns=start, until_ns=until))
        while not all(member.is_idle for member in self._members):
            self._hear()
            self._judge_unreached()
        return self._books()

    def stop(self) -> Books:
        """End the processes, in a phase or not; return what they did of it."""
        for member in self._members:
            member.say(b"")
        for member in self._members:
            while not member.is_idle and member.hear():
                pass
        return self._books()

    def _books(self) -> Books:
        """Return the books of the last phase, each once."""
        books = [(one.tally or Tally(), one.latencies or array("Q")) for one in self._members]
        for member in self._members:
            member.tally = member.latencies = None
        return books

    def _hear(self) -> None:
        """Wait for something to be said, LOOK at most, and take it."""
        ready = {fd for fd, _ in self._poll.poll(LOOK * 1000)}
        for number, member in enumerate(self._members):
            if member.out in ready and not member.hear():
                self._poll.unregister(member.out)
                code = member.process.wait()
                raise LoadProcessError(f"load process {number + 1} ended with status {code}")
        self._tell(sum(member.said.ended for member in self._members))
        self._look()

    def _judge_unreached(self) -> None:
        """Let those go on that could not connect at first, once it is known that others could."""
        failed = [one for one in self._members if one.said.unreached and not one.said.reached]
        if len(failed) == len(self._members):
            raise NobodyListens(failed[0].said.unreached)
        others = [one.said for one in self._members if one not in failed]
        if not any(one.reached or one.ready for one in others):
            return
        for member in failed:
            if not member.answered:
                member.answered = True
                member.say(b"go")


def _start() -> "subprocess.Popen[bytes]":
    # The terminal sends SIGINT to all of its foreground group.  Held back over the start it stays
    # so in the child, and this process alone hears it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(  # noqa: S603 - this interpreter, on a constant
            [sys.executable, "-P", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
