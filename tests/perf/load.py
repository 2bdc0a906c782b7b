"""Send a bounded load: by the compiled load.c, or, without a C compiler, by this module's own main.

Both have one interface: argv PATTERN PORT GREETINGS PROCESSES OUTSTANDING, and one JSON object (a
`Load`) on stdout. The stand-in uses threads in one process and is several times slower, so rates
and latencies measured with it are the client's; the server's CPU per greeting still holds.
"""

import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

PATIENCE = 10.0
LATE_NS = 500_000_000
SOURCES = 64


class Load(msgspec.Struct, frozen=True):
    """What the clients saw; `late` connects lost a SYN to a full accept queue."""

    done: int
    connect: int
    send: int
    receive: int
    timeout: int
    late: int
    seconds: float
    p50_us: float
    p99_us: float

    @property
    def errors(self) -> int:
        """Greetings that the clients could not finish."""
        return self.connect + self.send + self.receive + self.timeout

    @classmethod
    def sum(cls, loads: "Sequence[Load]") -> "Load":
        """Add the counts up; latencies cannot be added, and are left out."""
        counts = ("done", "connect", "send", "receive", "timeout", "late", "seconds")
        sums = {name: sum(getattr(load, name) for load in loads) for name in counts}
        return cls(**sums, p50_us=0.0, p99_us=0.0)


def run_load(
    programs: Path | None,
    pattern: str,
    port: int,
    greetings: int,
    *,
    processes: int = 1,
    outstanding: int = 1,
) -> Load:
    """Run one load to its end (blocking); `programs` holds the compiled one."""
    command = [str(programs / "load")] if programs else [sys.executable, "-m", "tests.perf.load"]
    command += [pattern, str(port), str(greetings), str(processes), str(outstanding)]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    return msgspec.json.decode(output, type=Load)


def greet(port: int, number: int, *, closed: bool) -> tuple[str, int, int]:
    """Send one name; how it ended (`done` or the name of an error), connect ns, all ns."""
    start = connected = time.monotonic_ns()
    step = "connect"
    source = (f"127.1.0.{number % SOURCES + 1}", 0)
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE, source) as sock:
            connected = time.monotonic_ns()
            step = "send"
            sock.sendall(b"client-%07d\n" % number)
            if closed:
                step = "receive"
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(4096):
                    pass
    except OSError as error:
        return "timeout" if isinstance(error, TimeoutError) else step, 0, 0
    return "done", connected - start, time.monotonic_ns() - start


def main() -> None:
    """Stand in for load.c."""
    pattern, *numbers = sys.argv[1:]
    port, greetings, processes, outstanding = map(int, numbers)
    closed = pattern == "closed"
    start = time.monotonic()
    with ThreadPoolExecutor(processes * outstanding if closed else processes) as pool:
        results = list(pool.map(lambda i: greet(port, i, closed=closed), range(greetings)))
    seconds = time.monotonic() - start
    count = Counter(outcome for outcome, _, _ in results)
    spent = sorted(ns for outcome, _, ns in results if outcome == "done") or [0]
    load = Load(
        done=count["done"],
        connect=count["connect"],
        send=count["send"],
        receive=count["receive"],
        timeout=count["timeout"],
        late=sum(connect_ns > LATE_NS for _, connect_ns, _ in results),
        seconds=seconds,
        p50_us=spent[len(spent) // 2] / 1e3 if closed else 0.0,
        p99_us=spent[len(spent) * 99 // 100] / 1e3 if closed else 0.0,
    )
    sys.stdout.write(msgspec.json.encode(load).decode() + "\n")


if __name__ == "__main__":
    main()
