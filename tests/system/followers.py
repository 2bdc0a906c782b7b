"""Programs that follow the greeting logs as they are written: `tail -F`, and rsyslog's imfile.

Each writes what it has seen into a file of its own, line by line, outside of the log directory.
"""

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

Output = Callable[[], bytes]
"""Returns all that a follower has seen so far."""
Follow = Callable[[Path, Sequence[int], Path, Sequence[str]], AbstractContextManager[Output]]
"""Follows a directory's logs of these slots; what it keeps is in another; with a prefix."""

RSYSLOG = """
global(workDirectory="{place}" maxMessageSize="64k")
module(load="imfile" mode="inotify")
template(name="line" type="string" string="%msg%\\n")
ruleset(name="out") {{ action(type="omfile" file="{place}/seen" template="line") }}
{inputs}
"""
INPUT = 'input(type="imfile" file="{log}" tag="greetings" ruleset="out")\n'


@contextlib.contextmanager
def tail(
    log_dir: Path, slots: Sequence[int], place: Path, prefix: Sequence[str]
) -> Iterator[Output]:
    """Follow each log by a `tail -F`, since of several files it would mix torn lines."""
    seen = [place / f"seen-{slot}" for slot in slots]
    with contextlib.ExitStack() as stack:
        for slot, file in zip(slots, seen, strict=True):
            command = ["tail", "--lines=+1", "-F", str(log_dir / f"worker-{slot}.log")]
            out = stack.enter_context(file.open("wb"))
            stack.enter_context(running([*prefix, *command], stdout=out))
        yield lambda: b"".join(file.read_bytes() for file in seen)


@contextlib.contextmanager
def tail_of_open_file(log: Path, place: Path) -> Iterator[Output]:
    """Follow the file that a log is now, wherever it is moved, as followers by inode do."""
    seen = place / f"seen-{log.stat().st_ino}"
    command = ["tail", "--lines=+1", "--follow=descriptor", str(log)]
    with seen.open("wb") as out, running(command, stdout=out):
        yield seen.read_bytes


@contextlib.contextmanager
def imfile(
    log_dir: Path, slots: Sequence[int], place: Path, prefix: Sequence[str]
) -> Iterator[Output]:
    """Follow all logs by one rsyslogd."""
    if shutil.which("rsyslogd") is None:
        pytest.skip("rsyslogd is missing")
    inputs = "".join(INPUT.format(log=log_dir / f"worker-{slot}.log") for slot in slots)
    config, seen = place / "rsyslog.conf", place / "seen"
    config.write_text(RSYSLOG.format(place=place, inputs=inputs))
    seen.touch()
    command = ["rsyslogd", "-n", "-f", str(config), "-i", str(place / "rsyslog.pid")]
    with running([*prefix, *command]):
        yield seen.read_bytes


@contextlib.contextmanager
def running(command: Sequence[str], stdout: object = None) -> Iterator[None]:
    """Run a program meanwhile."""
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL)  # type: ignore[call-overload]
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=30.0)
