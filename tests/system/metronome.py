"""Measures what the machine itself does to a process that needs WORK of CPU time at once.

Run as `python -m tests.system.metronome`: beats every BEAT until its standard input ends, then
prints the longest time, in seconds, from when a beat was due to when it had had its CPU time.
"""

import contextlib
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from tests.system.harness import ROOT

BEAT = 0.05
WORK = 0.01
"""Less is done within the slice that whoever has slept is given, however many compete."""


@contextlib.contextmanager
def metronome() -> Iterator[Callable[[], float]]:
    """Let it beat beside the block; what is given ends it and returns the longest time."""
    command = [sys.executable, "-m", "tests.system.metronome"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def longest() -> float:
            out, _ = process.communicate(timeout=30)
            return float(out)

        assert process.stdout is not None
        try:
            # Not before it beats: to start it takes longer than what some want to know of.
            assert process.stdout.readline() == "beating\n"
            yield longest
        finally:
            process.kill()


def main() -> None:
    """Beat."""
    print("beating", flush=True)
    longest = 0.0
    due = time.monotonic() + BEAT
    while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
        until = time.process_time() + WORK
        while time.process_time() < until:
            pass
        longest = max(longest, time.monotonic() - due)
        due = time.monotonic() + BEAT
    print(longest)


if __name__ == "__main__":
    main()
