"""greeterd as a unit of the container's systemd: installed, configured, asked, cleaned up after.

The programs in /opt/greeterd are the project's own source here; test_systemd_install.py has them
installed as the heads of the units say. Clients run on the host, but in the container's network.
"""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from greeterd.control import ask
from tests.support import until
from tests.system.clients import Load
from tests.system.container import Container
from tests.system.harness import ROOT, Record, records

UNITS = ROOT / "systemd"
ADDRESS = "127.0.0.1:12345"
SERVICE = "greeterd.service"
LOG_DIR = "/var/log/greeterd"

# Load starts ten times slower, for the modules that it needs.
GREET = """
import socket, sys
host, port, count = sys.argv[1:]
for number in range(int(count)):
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(b"client-%d" % number)
        sock.shutdown(socket.SHUT_WR)
        answer = sock.makefile("rb").read()
        assert answer == b"Hello, client-%d\\n" % number, answer
"""


class Unit:
    """The unit with a configuration; close() stops and forgets all of it.

    `units` are installed beside the service; `drop_in` is added to its [Service], in which only
    the time before a restart is shorter than an operator's.
    """

    def __init__(
        self,
        container: Container,
        config: str,
        *,
        units: Sequence[str] = (),
        drop_in: str = "",
    ) -> None:
        self.container = container
        self._since = datetime.now().astimezone().timestamp()
        self.units = [SERVICE, *units]
        install_programs(container)
        for name in self.units:
            container.path(f"/etc/systemd/system/{name}").write_text((UNITS / name).read_text())
        self.configure(config)
        directory = container.path(f"/etc/systemd/system/{SERVICE}.d")
        directory.mkdir(exist_ok=True)
        lines = ["[Service]", *what_to_show(), "RestartSec=100ms", drop_in, ""]
        (directory / "test.conf").write_text("\n".join(lines))
        self.ctl("daemon-reload")

    def configure(self, config: str) -> None:
        """Write the configuration file."""
        path = self.container.path("/etc/greeterd/greeterd.toml")
        path.parent.mkdir(exist_ok=True)
        path.write_text(config)

    # Asking

    def ctl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run systemctl."""
        return self.container.run("systemctl", *words, check=check)

    def start(self, unit: str = SERVICE) -> None:
        """Start a unit; on failure the journal is in the message."""
        done = self.ctl("start", unit, check=False)
        assert done.returncode == 0, f"{done.stderr}{self.journal()}"

    def show(self, name: str, unit: str = SERVICE) -> str:
        """Return a property of a unit."""
        return self.ctl("show", "--value", "-p", name, unit).stdout.strip()

    @property
    def master(self) -> int:
        """The main process, as the container numbers it."""
        return int(self.show("MainPID"))

    def journal(self) -> str:
        """Return the service's messages since this unit was installed."""
        return self.container.journal("greeterd", f"--since=@{self._since:.6f}")

    def events(self, name: str) -> list[Record]:
        """Return the records of one event in the daemon log."""
        return [one for one in records(self.journal()) if one.get("event") == name]

    def greeterctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run greeterctl."""
        return self.container.run("/opt/greeterd/bin/greeterctl", *words, check=False)

    def status(self) -> Record:
        """Return what `greeterctl status --json` would print; no program is started for it."""
        answer = ask(self.container.path("/run/greeterd/control.sock"), "status", 10.0)
        assert answer["ok"], answer
        found: Record = answer["status"]
        return found

    def workers(self) -> dict[int, int]:
        """Return the pids of the ready workers, by slot, as the container numbers them."""
        workers = self.status()["workers"]
        return {one["slot"]: one["pid"] for one in workers if one["state"] == "ready"}

    def signal(self, name: str, *pids: int) -> None:
        """Send a signal to processes of the container."""
        self.container.run("kill", f"-{name}", *map(str, pids))

    def lives(self, pid: int) -> bool:
        """Tell whether a process of the container is there."""
        return self.container.path(f"/proc/{pid}").exists()

    def stored(self) -> int:
        """Return how many descriptors systemd keeps for the service."""
        return int(self.show("NFileDescriptorStore"))

    def passed(self) -> list[str]:
        """Return the names of the descriptors that systemd gave to the present master."""
        data = self.container.path(f"/proc/{self.master}/environ").read_text()
        words = dict(word.partition("=")[::2] for word in data.split("\0"))
        return words.get("LISTEN_FDNAMES", "").split(":")

    def greetings(self) -> list[Record]:
        """Return the greetings of all logs, also of those that were rotated."""
        text = self.container.run("bash", "-c", f"cat {LOG_DIR}/worker-*").stdout
        return records(text)

    # Clients

    @property
    def network(self) -> tuple[str, ...]:
        """Put before a command, this runs it on the host, but in the container's network."""
        return ("nsenter", "--target", str(self.container.pid), "--net", "--")

    def load(self, **options: Any) -> Load:
        """Return clients that greet, as Load."""
        return Load(ADDRESS, prefix=self.network, **options)

    def greet(self, count: int = 1) -> None:
        """Greet so many times, and see each greeting come back."""
        where = ADDRESS.split(":")
        done = subprocess.run(
            [*self.network, sys.executable, "-I", "-S", "-c", GREET, *where, str(count)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def say(self, name: str) -> None:
        """Send a name, and wait for nothing."""
        host, _, port = ADDRESS.partition(":")
        self.container.run("bash", "-c", f"printf %s {name} >/dev/tcp/{host}/{port}")

    def queue(self, count: int) -> Load:
        """Stop all who accept, or could be lent what others accept; return so many who wait."""
        dispatchers = [one["pid"] for one in self.status()["dispatcher"]]
        self.signal("STOP", *dispatchers, *self.workers().values())
        load = self.load(count=count, processes=1, concurrency=count, timeout=40.0, reply=True)
        try:
            until(lambda: self.queued() >= count, what=f"{count} clients that wait", timeout=20.0)
        except BaseException:
            load.__exit__(None, None, None)
            raise
        return load

    def queued(self) -> int:
        """Return how many clients wait to be accepted."""
        return sum(one["queued"] for one in self.status()["listeners"])

    # End

    def close(self, *, failed: bool = False) -> None:
        """Stop everything, and remove what it has written; print the journal if a test failed."""
        if failed:
            print(self.ctl("status", "--no-pager", "--lines=0", *self.units, check=False).stdout)
            print(self.journal())
        self.ctl("kill", "--kill-whom=all", "--signal=CONT", SERVICE, check=False)
        self.ctl("stop", *reversed(self.units), check=False)
        self.ctl("reset-failed", *self.units, check=False)
        for name in self.units:
            self.container.path(f"/etc/systemd/system/{name}").unlink()
        shutil.rmtree(self.container.path(f"/etc/systemd/system/{SERVICE}.d"))
        self.container.run("bash", "-c", f"rm -rf {LOG_DIR}/*")
        self.container.run("journalctl", "--sync")
        self.ctl("daemon-reload")


def what_to_show() -> list[str]:
    """Return the settings that let a unit see the project and its interpreter, wherever they lie.

    DynamicUser= implies PrivateTmp=, whatever a drop-in says (systemd.exec(5)).
    """
    hidden = {path for path in (ROOT, Path(sys.prefix)) if path.is_relative_to("/tmp")}
    return ["ProtectHome=no", *(f"BindReadOnlyPaths={path}" for path in sorted(hidden))]


def install_programs(container: Container) -> None:
    """Put programs of the project's source where the units look for them."""
    for name, module in (("greeterd", "greeterd"), ("greeterctl", "greeterd.cli.greeterctl")):
        program = container.path(f"/opt/greeterd/bin/{name}")
        program.parent.mkdir(parents=True, exist_ok=True)
        code = f"import sys; from {module} import main; sys.exit(main())"
        command = "-m greeterd" if name == "greeterd" else f"-c '{code}'"
        program.write_text(
            f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -B {command} "$@"\n'
        )
        program.chmod(0o755)
    # The interpreter may be where only its owner may pass.
    for directory in Path(sys.base_prefix).parents:
        with contextlib.suppress(OSError):
            inside = container.path(str(directory))
            inside.chmod(inside.stat().st_mode | 0o011)
