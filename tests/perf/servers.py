"""Build, start, watch and stop the servers under measurement: greeterd and the two C references.

Each server runs on 127.0.0.1, on a port that the kernel chose, in a temporary directory of its own
(below TMPDIR, which so decides the file system of the logs). When its context ends, also by Ctrl-C
or SIGTERM, the server and its directory are gone.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import msgspec
import psutil

from greeterd.bench import peers
from greeterd.bench.peers.compiled import COMPILED, build, compile_program, compiler

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
GREETERD = (sys.executable, "-m", "greeterd")
START_TIMEOUT = 60.0


def run_program(main: Callable[[], int]) -> NoReturn:
    """Exit with what `main` returns; SIGTERM unwinds and so cleans up as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # noqa: TID251 (no daemon here)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)


def pause(seconds: float) -> None:
    """Give the processor away between two looks at a counter of another process."""
    threading.Event().wait(seconds)


def poll(predicate: Callable[[], object], *, timeout: float, step: float = 0.001) -> bool:
    """Whether the predicate became true in time; `step` is the error of the instant."""
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > deadline:
            return False
        pause(step)
    return True


@contextmanager
def built() -> Iterator[Path | None]:
    """Compile the C programs; yields their directory, or None when there is no compiler."""
    if compiler() is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="greeterd-perf-") as name:
        directory = Path(name)
        for server in COMPILED:
            build(server, directory)
        compile_program(HERE / "load.c", directory)
        yield directory


@dataclass
class Server:
    """A running server; counts finished greetings from what it writes."""

    process: subprocess.Popen[bytes]
    port: int
    directory: Path
    ready_after: float  # seconds from exec until it said that it is ready
    _read: dict[Path, tuple[int, int]] = field(default_factory=dict)  # log -> bytes, lines

    def pids(self) -> list[int]:
        """Every process of the server, the master first."""
        master = psutil.Process(self.process.pid)
        return [master.pid, *sorted(child.pid for child in master.children(recursive=True))]

    def lines(self) -> dict[str, int]:
        """Lines in each worker's log so far, by the log's name; reads only what is new."""
        for path in sorted(self.directory.glob("worker-*.log")):
            at, lines = self._read.get(path, (0, 0))
            with path.open("rb") as log:
                log.seek(at)
                new = log.read()
            self._read[path] = (at + len(new), lines + new.count(b"\n"))
        return {path.stem: lines for path, (_, lines) in self._read.items()}

    def done(self) -> int:
        """Greetings finished so far: log lines, or the count cells of bare.c."""
        if (self.directory / "count").exists():
            return sum(peers.counts(self.directory))
        return sum(self.lines().values())

    def stop(self) -> None:
        """Stop every process (SIGSTOP), the master first, so that it sees no stuck worker."""
        pids = self.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        poll(
            lambda: all(psutil.Process(pid).status() == psutil.STATUS_STOPPED for pid in pids),
            timeout=5.0,
        )

    def go(self) -> None:
        """Let every process go on, the master last."""
        for pid in reversed(self.pids()):
            os.kill(pid, signal.SIGCONT)


def cpu_ns(pids: Sequence[int]) -> int:
    """CPU time, user and system, of living processes with all their threads, in nanoseconds.

    The clock id is what clock_getcpuclockid(3) computes; /proc/PID/stat counts ticks of 10 ms.
    Raises OSError when one of the processes is gone.
    """
    return sum(time.clock_gettime_ns((~pid << 3) | 2) for pid in pids)


@contextmanager
def running(
    kind: str,
    mode: str,
    workers: int,
    *,
    programs: Path | None,
    greeterd: Sequence[str] = GREETERD,
) -> Iterator[Server]:
    """Start a server (`greeterd`, `threaded` or `bare`), wait until it is ready, and end it."""
    with tempfile.TemporaryDirectory(prefix="greeterd-perf-") as name:
        directory = Path(name)
        if kind == "greeterd":
            command = [*greeterd, "--bind", "127.0.0.1:0", "--mode", mode]
            command += ["--workers", str(workers), "--log-dir", name, "--log-format", "json"]
            command += ["--run-dir", str(directory / "run")]
        else:
            assert programs is not None
            command = [str(programs / kind), "0", str(workers), mode, name]
        start = time.monotonic()
        process = spawn(command, directory)
        try:
            port = wait_for_port(process, directory)
            yield Server(process, port, directory, time.monotonic() - start)
        finally:
            end(process)


def spawn(command: Sequence[str], directory: Path) -> subprocess.Popen[bytes]:
    """Start with a neutral environment; where setpriv(1) is, no server outlives this process."""
    setpriv = shutil.which("setpriv")
    prefix = [setpriv, "--pdeathsig", "TERM"] if setpriv else []
    foreign = ("GREETERD_", "NOTIFY_", "LISTEN_", "LOGS_", "RUNTIME_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    with (directory / "stdout").open("wb") as out, (directory / "stderr").open("wb") as err:
        return subprocess.Popen(
            [*prefix, *command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )


def wait_for_port(process: subprocess.Popen[bytes], directory: Path) -> int:
    """Wait for the port: the references' stdout, or greeterd's ready record on stderr."""
    port = 0

    def known() -> bool:
        nonlocal port
        port = announced_port(directory)
        return port > 0 or process.poll() is not None

    poll(known, timeout=START_TIMEOUT)
    if port == 0:
        said = (directory / "stderr").read_text()
        raise SystemExit(f"{process.args!r} did not become ready:\n{said}")
    return port


def announced_port(directory: Path) -> int:
    """Return the port that the server has announced, or 0."""
    if said := (directory / "stdout").read_bytes().strip():
        return int(said.rpartition(b":")[2])
    for line in (directory / "stderr").read_bytes().splitlines(keepends=True):
        if b'"ready"' not in line or not line.endswith(b"\n"):
            continue
        record = msgspec.json.decode(line)
        if record["event"] == "ready" and "addresses" in record:
            return int(record["addresses"][0].rpartition(":")[2])
    return 0


def end(process: subprocess.Popen[bytes]) -> None:
    """End the server gracefully, or by force after ten seconds, with every child."""
    if process.poll() is not None:
        return
    children = psutil.Process(process.pid).children(recursive=True)
    for pid in (process.pid, *(child.pid for child in children)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    process.terminate()
    try:
        process.wait(10.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
