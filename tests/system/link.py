"""Two hosts in network namespaces of their own, joined by a link with delay, jitter and loss.

Needs root and a TUN device. The namespaces are held by processes and have no names, so nothing of
them outlives the processes; those end when their standard input does, so they do not outlive
the tests either. Durations are seconds, one way; `loss` is a share of the packets of each way.
"""

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

import pytest

from tests.system.harness import ROOT

SERVER = "10.77.0.1"
CLIENT = "10.77.0.2"
TUN = Path("/dev/net/tun")


class Link:
    """A server and a client host and the link between them; a context manager.

    Skips the test, with the reason, where such a link cannot be made.
    """

    def __init__(self, *, delay: float = 0.0, jitter: float = 0.0, loss: float = 0.0) -> None:
        if os.geteuid() != 0:
            pytest.skip("a link between network namespaces needs root")
        for command in ("ip", "unshare", "nsenter"):
            if shutil.which(command) is None:
                pytest.skip(f"a link between network namespaces needs the command {command}")
        self.server = SERVER
        self.client = CLIENT
        self._stack = contextlib.ExitStack()
        try:
            self._build(delay=delay, jitter=jitter, loss=loss)
        except BaseException:
            self._stack.close()
            raise

    def _build(self, **conditions: float) -> None:
        tun = self._tun()
        self.server_pid, self.client_pid = self._host(), self._host()
        process = self._start([
            sys.executable, "-m", "tests.system.link_forwarder",
            str(self.server_pid), str(self.client_pid),
            "--networks", f"{SERVER}/24", f"{CLIENT}/24", "--tun", str(tun),
            *(f"--{name}={value}" for name, value in conditions.items()),
        ])  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == b"up\n", f"the link is not up: {line!r}, {process.wait()}"

    def _tun(self) -> Path:
        """Return a TUN clone device; where /dev has none, one made in a temporary directory."""
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        for device in (TUN, directory / "tun"):
            if not device.exists() and device != TUN:
                with contextlib.suppress(OSError):
                    os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(10, 200))
            with contextlib.suppress(OSError):
                os.close(os.open(device, os.O_RDWR))
                return device
        pytest.skip(f"no TUN device: {TUN} cannot be opened, nor one made")

    def _host(self) -> int:
        """Start a process in a new network namespace; return its pid."""
        process = self._start(["unshare", "--net", "--", "cat"])
        assert process.stdin is not None
        assert process.stdout is not None
        # cat answers from within the namespace: unshare(1) has done its work by then.
        process.stdin.write(b"there?\n")
        process.stdin.flush()
        if process.stdout.readline() != b"there?\n":
            pytest.skip("unshare --net is not permitted")
        return process.pid

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a process that ends when its standard input does."""
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._stack.callback(_end, process)
        return process

    @property
    def server_prefix(self) -> tuple[str, ...]:
        """Put before a command, this runs it on the server's host, under the pid it has anyway."""
        return _prefix(self.server_pid)

    @property
    def client_prefix(self) -> tuple[str, ...]:
        """Put before a command, this runs it on the client's host."""
        return _prefix(self.client_pid)

    def run_in_server(self, *command: str, timeout: float = 60.0) -> str:
        """Run a command on the server's host to its end; return what it printed."""
        return _run([*self.server_prefix, *command], timeout)

    def run_in_client(self, *command: str, timeout: float = 60.0) -> str:
        """Run a command on the client's host to its end; return what it printed."""
        return _run([*self.client_prefix, *command], timeout)

    def close(self) -> None:
        """Take the link down; what still runs on the hosts keeps its namespace, but no link."""
        self._stack.close()

    def __enter__(self) -> Self:
        """Return the link, which is up."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the link down."""
        self.close()


def _prefix(pid: int) -> tuple[str, ...]:
    return ("nsenter", f"--net=/proc/{pid}/ns/net", "--")


def _run(command: list[str], timeout: float) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=timeout,
        check=True,
        text=True,
    )
    return done.stdout


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
