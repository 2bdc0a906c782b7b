"""Starts the servers that are measured, talks with them as a user would, and ends them.

Each has a directory of its own, for its logs and its control socket, and a process group of its
own, by which it is killed when it has not ended in order.  Nothing of it is left afterwards.  When
this process is killed itself, the kernel tells them to end, and only directories are left.
"""

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGQUIT, SIGTERM, Signals
from typing import Final

import msgspec

from greeterd.bench import census, peers
from greeterd.bench.census import process_stat
from greeterd.bench.experiment.outside import queues, tree
from greeterd.bench.experiment.plan import Command, wants_reply
from greeterd.bench.experiment.waiting import poll
from greeterd.bench.model import Case
from greeterd.control import ControlError, NotRunningError, ask
from greeterd.control.status import Status, from_plain
from greeterd.errors import GreeterdError
from greeterd.sockets.address import Address, parse_address
from greeterd.system.signals import blocked, die_with_parent, release

DAEMON: Final = (sys.executable, "-P", "-m", "greeterd")
"""The daemon of this very installation, and not one in the working directory (-P)."""

START_TIMEOUT: Final = 30.0
STOP_TIMEOUT: Final = 15.0
COMMAND_STOP_TIMEOUT: Final = 3.0
STOPPED_TIMEOUT: Final = 86400
"""Seconds that a worker may be stopped: longer than any load."""
ANSWER_TIMEOUT: Final = 10.0
_KILL_TIMEOUT: Final = 5.0
_LAST_WORDS: Final = 400

# What would configure a daemon, or have it talk with somebody else's service manager.
_FOREIGN: Final = (
    "GREETERD_",
    "LISTEN_",
    "LOGS_",
    "NOTIFY_",
    "RUNTIME_",
    "WATCHDOG_",
    "XDG_RUNTIME",
)


class TrialError(GreeterdError):
    """Why a trial says nothing; the experiment goes on with the next (EX_SOFTWARE)."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How servers are started here."""

    bind: str = "127.0.0.1:0"
    daemon: Sequence[str] = DAEMON
    builds: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The commands of several daemons, by name."""
    commands: Mapping[str, Command] = field(default_factory=dict)
    """Servers of the command line, by name."""
    cpus: Sequence[int] = ()
    """Where servers run; anywhere when empty."""
    build_dir: Path | None = None
    """Where compiled peers are kept during an experiment."""
    commit: str = ""
    """Of the daemon's source, to be noted in each trial."""


@dataclass(slots=True)
class Server:
    """A server that accepts."""

    case: Case
    process: subprocess.Popen[bytes]
    directory: Path
    address: Address
    command: Command | None = None
    """None of greeterd and of peers."""
    _counted: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Bytes and lines of each log, as far as it was read."""

    @property
    def log_dir(self) -> Path:
        """Where its workers log."""
        return self.directory / "logs"

    @property
    def pid(self) -> int:
        """The process that was started: the root of all others."""
        return self.process.pid

    def status(self) -> Status | None:
        """Return what greeterd tells of itself; None from a server that tells nothing.

        Raises:
            TrialError: it does not answer.
        """
        if self.case.server != "greeterd":
            return None
        try:
            return _status(self.directory)
        except ControlError as error:
            raise TrialError(self.obituary() or str(error)) from error

    def obituary(self) -> str:
        """Return how it ended, with its last words; empty while it lives."""
        code = self.process.poll()
        if code is None:
            return ""
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"{self.case.server} {how}: {last_words(self.directory)}"

    def log_bytes(self) -> int:
        """Return the size of all greeting logs; cheap, for noticing that greetings come."""
        return sum(log.stat().st_size for log in self.log_dir.glob("worker-*.log"))

    def log_lines(self, *, afresh: bool = False) -> dict[int, int]:
        """Return how many greetings each slot has logged; of `bare` what it has counted.

        Only what is new is read, unless all is to be read afresh.
        """
        if afresh:
            self._counted.clear()
        if self.case.server == "bare":
            return dict(enumerate(peers.counts(self.log_dir), 1))
        found = {}
        for log in sorted(self.log_dir.glob("worker-*.log")):
            at, lines = self._counted.get(log, (0, 0))
            with log.open("rb") as file:
                file.seek(at)
                for chunk in iter(lambda: file.read(1 << 20), b""):
                    at, lines = at + len(chunk), lines + chunk.count(b"\n")
            self._counted[log] = at, lines
            found[int(log.stem.rpartition("-")[2])] = lines
        return found

    def workers(self) -> list[int]:
        """Return the processes that serve, of a server that does not tell: those that listen."""
        taken = census.take(self.address.port, tree(self.pid))
        return sorted(taken.workers)

    def stop(self) -> None:
        """Have it end in order, quickly; what it has greeted is written.

        A command's server is asked to end, and may end as it likes; it is killed if it takes long.

        Raises:
            TrialError: it did not end in time, or not with 0.
        """
        if self.command is not None:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.kill(self.pid, SIGTERM)
                self.process.wait(COMMAND_STOP_TIMEOUT)
            return
        if self.process.poll() is None:
            status = self.status()
            number = SIGTERM if status is None else SIGQUIT
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid if status is None else status.pid, number)
            try:
                self.process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                raise TrialError(f"it had not ended {STOP_TIMEOUT:g} s after the stop") from None
        if self.process.returncode:
            raise TrialError(self.obituary())


def _status(directory: Path) -> Status:
    """Ask the daemon.  Raises: ControlError: there is no answer, or it says no."""
    answer = ask(directory / "run/control.sock", "status", ANSWER_TIMEOUT)
    if not answer["ok"]:
        raise ControlError(f"no status: {answer['error']}")
    try:
        return from_plain(answer["status"])
    except (KeyError, ValueError) as error:
        raise ControlError(f"its status is not understood: {error}") from error


@contextlib.contextmanager
def temporary_directory(prefix: str) -> Iterator[Path]:
    """Make a directory, and remove it at the end; an interrupt finds it not made, or removed."""

    def remove() -> None:
        # An interrupt just before this leaves it to the exit of the interpreter.
        with blocked():
            made.cleanup()

    with contextlib.ExitStack() as stack:
        with blocked():
            made = tempfile.TemporaryDirectory(prefix=prefix)
            stack.callback(remove)
        yield Path(made.name)


@contextlib.contextmanager
def running(case: Case, setup: Setup) -> Iterator[Server]:
    """Start a fresh server, wait until it accepts, and leave nothing of it behind.

    Raises:
        TrialError: it did not start.
    """
    with temporary_directory("greeter-bench-") as directory:
        (directory / "logs").mkdir()
        own = setup.commands.get(case.server)
        address = free_address() if own else None
        if own and address:
            command = filled(own.command, case, address, directory)
        else:
            command = _command(case, setup, directory)
        # A quick stop of greeterd also ends a worker that a fault has stopped.
        last = SIGQUIT if case.server == "greeterd" else SIGTERM
        with started(command, directory, last, setup.cpus) as process:
            told = _wait_until_ready(case, process, directory, address)
            yield Server(case, process, directory, told, own)


def free_address() -> Address:
    """Return an address of this machine where nobody listens: the server is told which to take."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        return Address("127.0.0.1", probe.getsockname()[1])


def filled(
    command: str, case: Case, address: Address, directory: Path, **more: object
) -> list[str]:
    """Return the words of a command with what is in braces filled in; other braces stay."""
    known = {
        "workers": case.workers,
        "address": address,
        "host": address.host,
        "port": address.port,
        "directory": directory,
        **more,
    }
    pattern = re.compile("{(" + "|".join(known) + ")}")
    return [pattern.sub(lambda found: str(known[found[1]]), word) for word in shlex.split(command)]


@contextlib.contextmanager
def started(
    command: Sequence[str], directory: Path, last: Signals = SIGTERM, cpus: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program whose `stdout` and `stderr` are files of a directory; kill it at the end.

    An interrupt is held back until it is sure that the program will be killed.  The program gets
    the signal `last` when this process dies without a chance to kill it.
    """
    parent = os.getpid()

    def prepare() -> None:
        die_with_parent(last, parent)
        if cpus:
            os.sched_setaffinity(0, cpus)
        release()

    with contextlib.ExitStack() as stack:
        out = stack.enter_context((directory / "stdout").open("wb"))
        err = stack.enter_context((directory / "stderr").open("wb"))
        with blocked():
            try:
                process = subprocess.Popen(  # noqa: S603  there are no threads here
                    command,
                    env=clean_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                    preexec_fn=prepare,  # noqa: PLW1509  there are no threads here
                )
            except OSError as error:
                raise TrialError(f"{command[0]}: {error.strerror}") from error
            stack.callback(kill, process)
        yield process


def _command(case: Case, setup: Setup, directory: Path) -> list[str]:
    if case.server != "greeterd":
        return peers.command(case, directory / "logs", setup.build_dir or directory)
    settings = {
        "bind": setup.bind,
        "mode": case.mode,
        "wait": case.wait,
        "steering": case.steering,
        "workers": case.workers,
        "rescue": str(case.rescue).lower(),
        "reply": str(wants_reply(case)).lower(),
        "log-dir": directory / "logs",
        "run-dir": directory / "run",
        "log-format": "json",
        "max-restarts": 1_000_000,  # the faults are ours
    }
    if case.fault == "stopped":
        settings["worker-timeout"] = STOPPED_TIMEOUT  # else the stopped one is ended, and replaced
    if case.mode == "handoff":
        settings["handoff-policy"] = case.handoff_policy
    if case.steering == "cpu":
        settings["cpu-affinity"] = "auto"  # else no worker has a CPU whose clients it gets
    daemon = setup.builds.get(case.build, setup.daemon)
    return [*daemon, *(f"--{name}={value}" for name, value in settings.items())]


def _wait_until_ready(
    case: Case, process: subprocess.Popen[bytes], directory: Path, given: Address | None
) -> Address:
    """Wait until it says that it is ready or, of a command's server, until it listens."""

    def look() -> str | None:
        if process.poll() is not None:
            code, words = process.returncode, last_words(directory)
            hint = " (it must stay in the foreground)" if given and code == 0 else ""
            raise TrialError(f"{case.server} did not start (exit code {code}{hint}): {words}")
        if given is not None:
            return str(given) if queues(given) else None
        if case.server != "greeterd":
            said = (directory / "stdout").read_text()
            return said.split()[1] if said.startswith("ready ") and "\n" in said else None
        with contextlib.suppress(NotRunningError):
            status = _status(directory)
            return status.addresses[0] if status.state == "running" else None
        return None

    try:
        address = poll(look, START_TIMEOUT)
    except ControlError as error:
        raise TrialError(f"{case.server} did not start: {error}") from error
    if address is None:
        words = last_words(directory)
        raise TrialError(f"{case.server} was not ready after {START_TIMEOUT:g} s: {words}")
    return parse_address(address)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all of its group and descendants, at once; a dead one's group too."""
    with blocked():
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    pids = tree(process.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, SIGKILL)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, SIGKILL)
    process.wait()
    poll(lambda: not any(map(_lives, pids)) or None, _KILL_TIMEOUT)


def _lives(pid: int) -> bool:
    stat = process_stat(pid)
    return bool(stat) and stat[0] not in "ZX"


def clean_environment() -> dict[str, str]:
    """Return this process's variables less those that would configure a daemon."""
    return {name: text for name, text in os.environ.items() if not name.startswith(_FOREIGN)}


def last_words(directory: Path) -> str:
    """Return in one line what a server said last on standard error.

    The first error record of the daemon log is the nearest to a cause, and the last line that is
    no record is how a program itself puts it; without either, the last line of all.
    """
    lines = (directory / "stderr").read_text(errors="replace").splitlines()
    errors = [line for line in lines if '"level":"error"' in line or '"level":"critical"' in line]
    own_words = [line for line in lines if not line.startswith("{")]
    words = " / ".join(map(_plain, [*errors[:1], *own_words[-1:]] or lines[-1:]))
    return words[:_LAST_WORDS] or "it said nothing"


def _plain(line: str) -> str:
    """Return a record of the daemon log without what stands in each; other lines as they are."""
    try:
        record = msgspec.json.decode(line, type=dict[str, object])
    except msgspec.DecodeError:
        return line
    common = {"timestamp", "level", "event", "process", "pid", "worker", "generation"}
    facts = [f"{name}={value}" for name, value in record.items() if name not in common]
    return " ".join([str(record.get("event", "")), *facts])


def version_of(daemon: Sequence[str]) -> str:
    """Return the version of the daemon that a command runs.

    Raises:
        TrialError: the command does not run one.
    """
    command = shlex.join(daemon)
    try:
        done = subprocess.run(  # noqa: S603
            [*daemon, "--version"],
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TrialError(f"{command}: {error}") from error
    if done.returncode or not done.stdout.strip():
        words = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise TrialError(f"{command} --version: {words}")
    name, _, version = done.stdout.strip().partition(" ")
    if name != "greeterd":
        raise TrialError(f"{command} --version: it is no greeterd: {done.stdout.splitlines()[0]}")
    return version


def is_taken(address: Address) -> str:
    """Return why an address cannot be listened on; empty when it can."""
    if address.is_unix:
        return "it exists" if Path(address.path).exists() else ""
    family = socket.AF_INET6 if address.is_v6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address.host, address.port))
        except OSError as error:
            return str(error.strerror or error)
    return ""
