"""Boots a real systemd as PID 1 of a throw-away container, and runs commands in it.

The container has mount, pid, cgroup, network, ipc and uts namespaces of its own, and an overlay
over the host's root, so it has the project and its interpreter at their usual paths, and nothing
that it writes reaches the host. What a container is made of: one cgroup, one temporary directory,
one process (unshare) whose death ends all others. close() removes all three, in any state.
Durations are seconds.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

import psutil
import pytest

from tests.support import until
from tests.system.harness import ROOT

INIT = Path(__file__).with_name("container_init.sh")
SYSTEMD = Path("/lib/systemd/systemd")
COMMANDS = ("bash", "findmnt", "ip", "mount", "nsenter", "setpriv", "systemctl", "unshare")
POWER_OFF = signal.SIGRTMIN + 4  # systemd(1), SIGNALS


class Container:
    """A booted container; a context manager.

    Skips the test, with the reason, where such a container cannot be made.
    """

    def __init__(self, *, timeout: float = 60.0) -> None:
        reason = obstacle()
        if reason:
            pytest.skip(f"no container with systemd: {reason}")
        self._stack = contextlib.ExitStack()
        try:
            self._boot(timeout)
        except BaseException:
            self._stack.close()
            raise

    def _boot(self, timeout: float) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="greeterd-container-"))
        self._stack.callback(shutil.rmtree, self.directory)
        self.cgroup = self._open_cgroup()
        overlay = self.directory / "overlay"
        overlay.mkdir()
        console = self.directory / "console.log"
        # The shell enters the cgroup before it becomes unshare, whose cgroup namespace then starts
        # there. unshare dies with this thread, and the container with unshare.
        enter = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
        with console.open("wb") as out:
            process = subprocess.Popen(
                [
                    "bash", "-c", enter, str(self.cgroup),
                    "setpriv", "--pdeathsig", "KILL",
                    "unshare", "--kill-child", "--fork", "--propagation", "private",
                    "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--net",
                    "bash", str(INIT), str(overlay), str(ROOT), sys.prefix, sys.base_prefix,
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )  # fmt: skip
        self._unshare = process
        self._stack.callback(self._kill)

        def booted() -> bool:
            assert process.poll() is None, f"the container ended: {console.read_text()}"
            return self._find_pid() and self.state() in {"running", "degraded"}

        until(booted, timeout=timeout, what="the end of the boot")

    def _find_pid(self) -> bool:
        """Learn the host's pid of the container's PID 1, once it is there and is systemd."""
        children = psutil.Process(self._unshare.pid).children()
        self.pid = children[0].pid if children else 0
        return bool(children) and children[0].name() == "systemd"

    def _open_cgroup(self) -> Path:
        """Make a cgroup in the host's cgroup2 hierarchy, or in a view of our own."""
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        points = [Path(point) for _, point, kind, *_ in mounts if kind == "cgroup2"]
        for top in points:
            with contextlib.suppress(OSError):
                return self._make_cgroup(top)
        top = self.directory / "cgroup2"
        top.mkdir()
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", top], check=True)
        self._stack.callback(lambda: subprocess.run(["umount", top], check=True))
        return self._make_cgroup(top)

    def _make_cgroup(self, top: Path) -> Path:
        cgroup = top / self.directory.name
        cgroup.mkdir()
        self._stack.callback(_remove_cgroup, cgroup)
        return cgroup

    # Use

    @property
    def prefix(self) -> tuple[str, ...]:
        """Put before a command, this runs it in the container."""
        return ("nsenter", "--target", str(self.pid), "--all", "--")

    def run(
        self, *command: str, timeout: float = 60.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the container to its end; return its output and exit code.

        Raises:
            AssertionError: it failed and `check` is set; what it wrote is in the message.
        """
        done = subprocess.run(
            [*self.prefix, *command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def path(self, inside: str) -> Path:
        """Return the host's path of a file in the container, to read or write it."""
        return Path(f"/proc/{self.pid}/root") / inside.lstrip("/")

    def state(self) -> str:
        """Return systemd's own word for how it is: starting, running, degraded, ..."""
        return self.run("systemctl", "is-system-running", check=False).stdout.strip()

    def journal(self, unit: str, *arguments: str) -> str:
        """Return the messages of a unit, without dates."""
        words = ("--no-pager", "--output", "cat", "--unit", unit, *arguments)
        self.run("journalctl", "--sync")
        return self.run("journalctl", *words).stdout

    # End

    def stop(self, *, timeout: float = 30.0) -> None:
        """Let systemd stop all units and power off."""
        os.kill(self.pid, POWER_OFF)
        self._unshare.wait(timeout)

    def _kill(self) -> None:
        """End the container; once its PID 1 is dead, the kernel kills the rest of its namespace."""
        if self._unshare.poll() is None:
            # The child first: unshare is its parent, and reaps it.
            for child in psutil.Process(self._unshare.pid).children():
                child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._unshare.wait(5.0)
        self._unshare.kill()
        self._unshare.wait()

    def close(self) -> None:
        """End the container if it still runs, and remove all that it was made of."""
        self._stack.close()

    def __enter__(self) -> Self:
        """Return the container, which is up."""
        return self

    def __exit__(self, *_: object) -> None:
        """Power off, and remove everything."""
        try:
            if self._unshare.poll() is None:
                self.stop()
        finally:
            self.close()


def obstacle() -> str | None:
    """Return why no container can be made here, or None."""
    if os.geteuid() != 0:
        return "it needs root"
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        return f"missing commands: {', '.join(missing)}"
    if not SYSTEMD.exists():
        return f"{SYSTEMD} is missing"
    kinds = Path("/proc/filesystems").read_text().split()
    for kind in ("overlay", "cgroup2"):
        if kind not in kinds:
            return f"the kernel has no {kind}"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--cgroup", "--net", "true"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return tried.stderr.strip() or None


def _remove_cgroup(cgroup: Path) -> None:
    """Remove a cgroup and those below it, once their last processes are gone."""

    def empty() -> bool:
        return "populated 0" in (cgroup / "cgroup.events").read_text()

    until(empty, what=f"the end of the processes in {cgroup}")
    for directory, _, _ in os.walk(cgroup, topdown=False):
        Path(directory).rmdir()
