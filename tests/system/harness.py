"""Runs the daemon as a user does: a command, directories of its own, a log to read, signals.

A Daemon owns every process that comes from its command: they share its process group or carry its
mark in their environment (a daemonized or upgraded master has left the group), and close() ends
them all. Log files are only read here; the daemon is their writer. Durations are seconds.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from signal import SIGKILL, SIGQUIT, SIGTERM
from typing import Any, Self

import psutil

from greeterd.control import ask
from tests.support import until

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "greeterd")
MARK = "LC_TEST_DAEMON_MARK"  # workers keep what begins so, see greeterd.system.environment

# What a service manager or a developer's shell tells a daemon; a test says it explicitly.
FOREIGN = frozenset({
    "INVOCATION_ID", "JOURNAL_STREAM", "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID",
    "LOGS_DIRECTORY", "MAINPID", "NOTIFY_SOCKET", "RUNTIME_DIRECTORY", "WATCHDOG_PID",
    "WATCHDOG_USEC", "XDG_RUNTIME_DIR",
})  # fmt: skip

Record = dict[str, Any]


def program(name: str) -> str:
    """Return the path of an installed console script: greeterd, greeterctl or greeter."""
    return str(Path(sysconfig.get_path("scripts")) / name)


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment less whatever would configure a daemon, plus `extra`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in FOREIGN and not name.startswith("GREETERD_")
    }
    return {**kept, **extra}


def records(text: str) -> list[Record]:
    """Return the JSON records among the complete lines of a log.

    A worker's faulthandler and the interpreter's last words share the daemon log; they are left
    out here, and stay visible in Daemon.log_text().
    """
    complete = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in complete.splitlines() if line.startswith("{")]


class Daemon:
    """One run of the daemon in a directory of its own; a context manager.

    `arguments` are the command line; an address on port 0, the directories and JSON logs are added
    where neither it nor `without` (what a file is to say) names them. `prefix` is put before the
    command (nsenter, prlimit, setpriv: such as keep the pid). The constructor waits until the
    daemon is ready, for `timeout` at most, unless `wait` is false. close() gives a quick stop
    `patience` before it kills.
    """

    def __init__(
        self,
        *arguments: str,
        command: Sequence[str] = COMMAND,
        prefix: Sequence[str] = (),
        without: Collection[str] = (),
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        wait: bool = True,
        timeout: float = 30.0,
        patience: float = 10.0,
    ) -> None:
        # Not pytest's tmp_path: a unix socket's path has 107 bytes at most. Others may enter,
        # because the daemon may run as another user.
        self.directory = Path(tempfile.mkdtemp(prefix="greeterd-test-"))
        self.directory.chmod(0o755)
        self.log_dir = self.directory / "logs"
        self.run_dir = self.directory / "run"
        self.stderr = self.directory / "stderr"
        self.arguments = [*arguments]
        for flag, value in (
            ("--bind", "127.0.0.1:0"),
            ("--log-dir", str(self.log_dir)),
            ("--run-dir", str(self.run_dir)),
            ("--log-format", "json"),
        ):
            given = any(word == flag or word.startswith(f"{flag}=") for word in arguments)
            if not given and flag not in without:
                self.arguments += [flag, value]
        self._patience = patience
        self._mark = uuid.uuid4().hex
        with self.stderr.open("ab") as stderr:
            self.process = subprocess.Popen(
                [*prefix, *command, *self.arguments],
                cwd=self.directory,
                env=clean_environment({**(environment or {}), MARK: self._mark}),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        if wait:
            try:
                self.wait_event("ready", timeout=timeout)
            except BaseException:
                self.close(failed=True)
                raise

    def __enter__(self) -> Self:
        """Return the daemon, which already runs."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """End it; keep its directory and print its log if the block failed."""
        self.close(failed=kind is not None)

    # What it said

    def log_text(self) -> str:
        """Return all that the daemon log holds: standard error, and greeterd.log if detached."""
        files = (self.stderr, self.log_dir / "greeterd.log")
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def events(self, name: str | None = None) -> list[Record]:
        """Return the daemon log's records, or those of one event, in the order of writing."""
        return [one for one in records(self.log_text()) if name in {None, one.get("event")}]

    def wait_event(self, name: str, *, timeout: float = 30.0, count: int = 1) -> Record:
        """Wait until `count` records of an event are there; return the latest of them.

        Raises:
            AssertionError: the time is up, or the daemon failed before; the log is in the message.
        """

        def seen() -> Record | None:
            # Ask about the process first: what it wrote before its end is then in the log.
            code = self.process.poll()
            found = self.events(name)
            ended = code is not None and (code != 0 or not self.processes())
            if len(found) < count and ended:
                raise AssertionError(f"exit code {code} before {name!r}; log:\n{self.log_text()}")
            return found[count - 1] if len(found) >= count else None

        try:
            found = until(seen, timeout=timeout, what=f"event {name!r}")
        except AssertionError as error:
            if "log:" in str(error):
                raise
            raise AssertionError(f"{error}; log:\n{self.log_text()}") from None
        assert found is not None
        return found

    @property
    def addresses(self) -> list[str]:
        """The addresses it listens on, as told by the latest ready record."""
        return [str(address) for address in self.events("ready")[-1]["addresses"]]

    @property
    def address(self) -> str:
        """The first of the addresses."""
        return self.addresses[0]

    def log_lines(self, slot: int) -> list[str]:
        """Return the greeting log of one slot, by lines; empty when there is none yet."""
        file = self.log_dir / f"worker-{slot}.log"
        return file.read_text().splitlines() if file.exists() else []

    def greetings(self) -> list[Record]:
        """Return the greeting records of all slots."""
        return [
            one
            for file in sorted(self.log_dir.glob("worker-*.log"))
            for one in records(file.read_text())
        ]

    # What it is

    @property
    def pid(self) -> int:
        """The serving master: the run lock's holder, else the process that was started."""
        with contextlib.suppress(OSError, ValueError, IndexError, psutil.NoSuchProcess):
            holder = int((self.run_dir / "greeterd.pid").read_text().split()[0])
            if self._owns(psutil.Process(holder)):
                return holder
        return self.process.pid

    def worker_pids(self) -> list[int]:
        """Return the master's living children, but for a dispatcher."""
        try:
            children = psutil.Process(self.pid).children()
            return sorted(one.pid for one in children if _is_worker(one))
        except psutil.NoSuchProcess:
            return []

    def processes(self) -> list[int]:
        """Return every living process that came from the command."""
        return [one.pid for one in psutil.process_iter() if self._owns(one)]

    def _owns(self, one: psutil.Process) -> bool:
        """Tell whether a process lives and came from the command."""
        with contextlib.suppress(psutil.Error, OSError):
            ours = os.getpgid(one.pid) == self.process.pid or one.environ().get(MARK) == self._mark
            return ours and one.status() != psutil.STATUS_ZOMBIE
        return False

    def ctl(self, *arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run `greeterctl` on this daemon and return what it printed and its exit code."""
        return subprocess.run(
            [program("greeterctl"), "--run-dir", str(self.run_dir), *arguments],
            env=clean_environment({}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def status(self) -> Record:
        """Ask the master for its status, and return what `greeterctl status --json` prints."""
        answer = ask(self.run_dir / "control.sock", "status", 10.0)
        assert answer["ok"], answer
        status: Record = answer["status"]
        return status

    # Its end

    def signal(self, number: int) -> None:
        """Send a signal to the serving master."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for the end of all its processes; return the started one's exit code."""
        code = self.process.wait(timeout)
        until(lambda: not self.processes(), timeout=timeout, what="the end of all processes")
        return code

    def stop(self, number: int = SIGTERM, *, timeout: float = 30.0) -> int:
        """Stop it (gracefully unless another signal is given); return its exit code."""
        self.signal(number)
        return self.wait(timeout)

    def close(self, *, failed: bool = False) -> None:
        """End whatever still runs, and remove the directory unless the test failed.

        Raises:
            AssertionError: something outlived a quick stop, or its master; not raised if `failed`,
                because the test's own reason comes first.
        """
        left = self._end()
        if failed or left:
            print(f"kept: {self.directory}\n{self.log_text()}")
        else:
            shutil.rmtree(self.directory)
        assert failed or not left, f"left behind by {self.process.args!r}: {left}"

    def _end(self) -> list[str]:
        """Stop it quickly, then kill; return what had to be killed."""
        if self.process.poll() is None or self.pid != self.process.pid:
            self.signal(SIGQUIT)
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self.wait(self._patience)
        left = []
        for pid in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                left.append(f"{pid} {' '.join(psutil.Process(pid).cmdline())}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, SIGKILL)
        self.process.wait()
        until(lambda: not self.processes(), what="the end of the killed processes")
        return left


def _is_worker(child: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        title = "".join(child.cmdline()[:1])  # read once: who ends loses it in between
        return child.status() != psutil.STATUS_ZOMBIE and "dispatcher" not in title
    return False
