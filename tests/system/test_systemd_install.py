"""The units, installed in a container by the very commands in their heads, and run as they are.

pip finds the wheel of this project without the index; the dependencies are the project's own.
"""

import functools
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.documents import SYSTEMD
from tests.support import until
from tests.system.clients import Load
from tests.system.container import Container
from tests.system.harness import ROOT, records
from tests.system.unit import ADDRESS, UNITS, what_to_show

SYSTEM = "/usr/sbin:/usr/bin:/sbin:/bin"
HIDDEN = ("/home", "/root", "/run/user", "/tmp")
"""What ProtectHome= and PrivateTmp= hide."""


def commands(file: Path) -> list[str]:
    """Return the commands of the head, in their order."""
    head = file.read_text().partition("\n\n")[0]
    return re.findall(
        r"^#   ((?:install|systemctl|systemd-|python3|/opt/)\S*[ ].*)$", head, re.MULTILINE
    )


@functools.cache
def is_twin() -> bool:
    """Tell whether the system's own Python can use what is installed for the project's."""
    program = "import ensurepip, sys; print(*sys.version_info[:2])"
    done = subprocess.run(
        ["/usr/bin/python3", "-c", program], capture_output=True, text=True, check=False
    )
    return done.stdout.split() == [str(number) for number in sys.version_info[:2]]


class Installed:
    """The container with greeterd in it."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.wheels = f"/opt/{container.directory.name}"
        self.hides = True
        """The units are as they are shipped."""

    def follow(self, file: Path) -> None:
        """Run the commands of a file's head."""
        for command in commands(file):
            self.run(command)
            if "pip install" in command:
                self._lend_dependencies()

    def run(self, command: str, *, check: bool = True) -> str:
        """Run a command as an operator does, in the directory of the project."""
        path = SYSTEM if is_twin() else f"{sys.base_prefix}/bin:{SYSTEM}"
        offline = f"PIP_NO_INDEX=1 PIP_FIND_LINKS={self.wheels} PIP_NO_DEPS=1 PATH={path}"
        script = f"cd {ROOT} && export {offline} && {command}"
        done = self.container.run("bash", "-c", script, check=False)
        if check and done.returncode:
            journal = self.container.run("journalctl", "--no-pager", "--lines=30").stdout
            raise AssertionError(f"{command}: {done.stdout}{done.stderr}{journal}")
        return done.stdout

    def _lend_dependencies(self) -> None:
        [packages] = self.container.path("/opt/greeterd/lib").glob("python3*/site-packages")
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        needed = (packages.resolve(), ROOT, *([] if is_twin() else [Path(sys.base_prefix)]))
        if any(path.is_relative_to(hidden) for path in needed for hidden in HIDDEN):
            for unit in ("greeterd.service", "greeterd@.service"):
                drop_in = self.container.path(f"/etc/systemd/system/{unit}.d/test.conf")
                drop_in.parent.mkdir()
                drop_in.write_text("\n".join(["[Service]", *what_to_show(), ""]))
            self.hides = False

    def show(self, name: str) -> str:
        """Return a property of the service."""
        return self.run(f"systemctl show --value -p {name} greeterd").strip()

    def greet(self, address: str = ADDRESS) -> None:
        """Greet, and see that it is taken."""
        network = ("nsenter", "--target", str(self.container.pid), "--net", "--")
        with Load(address, count=1, processes=1, prefix=network) as load:
            assert load.finish().counts == {"ok": 1}


@pytest.fixture(scope="module")
def installed(container: Container, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Follow the head of greeterd.service: what it ends with is running."""
    built = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", built, ROOT],
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=120,
    )
    here = Installed(container)
    wheels = container.path(here.wheels)
    wheels.mkdir()
    for wheel in built.iterdir():
        (wheels / wheel.name).write_bytes(wheel.read_bytes())
    here.follow(UNITS / "greeterd.service")
    return here


def fields(container: Container, pid: int) -> dict[str, str]:
    """Return what /proc/PID/status tells."""
    lines = container.path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_the_service_runs_as_it_is_shipped(installed: Installed) -> None:
    assert installed.show("ActiveState") == "active"
    assert installed.run("systemctl is-enabled greeterd").strip() == "enabled"
    installed.greet()
    status = installed.run("/opt/greeterd/bin/greeterctl status")
    assert f"listening on {ADDRESS}" in status
    logs = installed.run("cat /var/log/greeterd/worker-*.log")
    assert [one["event"] for one in records(logs)] == ["greeting"]


def test_the_sandbox_is_in_force(installed: Installed) -> None:
    container = installed.container
    master = int(installed.show("MainPID"))
    children = container.path(f"/proc/{master}/task/{master}/children").read_text().split()
    user = installed.run("stat -c %u /var/log/greeterd/worker-1.log").strip()
    assert int(user) in range(61184, 65520), "a dynamic user (systemd.exec(5))"
    for pid in (master, *map(int, children)):
        found = fields(container, pid)
        assert found["Uid"].split() == [user] * 4
        assert found["NoNewPrivs"] == "1"
        assert found["Seccomp"] == "2"
        assert {found[name] for name in ("CapEff", "CapPrm", "CapBnd")} == {"0" * 16}
        inside = f"nsenter --target {pid} --mount --"
        for path in ("/etc/written", "/usr/written", "/opt/greeterd/written", "/var/written"):
            told = installed.run(f"{inside} touch {path} 2>&1", check=False)
            assert "Read-only file system" in told, path
        installed.run(f"{inside} touch /var/log/greeterd/touched /run/greeterd/touched")
    if installed.hides:
        for path in ("/tmp", "/home", "/root"):
            assert installed.run(f"nsenter --target {master} --mount -- ls {path}") == "", path


def test_a_socket_starts_the_service(installed: Installed) -> None:
    installed.follow(UNITS / "greeterd.socket")
    assert installed.show("ActiveState") == "inactive"
    installed.greet()
    until(lambda: installed.show("ActiveState") == "active", what="the start")


def test_sockets_for_each_worker_start_the_service(installed: Installed) -> None:
    installed.run("systemctl disable --now greeterd.socket greeterd.service")
    installed.container.path("/etc/greeterd/greeterd.toml").write_text('mode = "reuseport"\n')
    installed.follow(UNITS / "greeterd-reuseport.socket")
    assert installed.show("ActiveState") == "inactive"
    installed.greet()
    assert "passed by the service manager" in installed.run("/opt/greeterd/bin/greeterctl status")
    installed.run("systemctl disable --now greeterd-reuseport.socket greeterd.service")


def test_an_instance_has_a_configuration_logs_and_a_control_socket_of_its_own(
    installed: Installed,
) -> None:
    installed.run("systemctl start greeterd")
    *steps, start = commands(UNITS / "greeterd@.service")
    for step in steps:
        installed.run(step)
    address = "127.0.0.1:12399"
    installed.container.path("/etc/greeterd/one.toml").write_text(f'bind = ["{address}"]\n')
    installed.run(start)
    installed.greet(address)
    greeterctl = "/opt/greeterd/bin/greeterctl --run-dir /run/greeterd-one"
    assert address in installed.run(f"{greeterctl} status")
    installed.run("systemctl reload greeterd@one")
    logs = installed.run("cat /var/log/greeterd-one/worker-*.log")
    assert [one["event"] for one in records(logs)] == ["greeting"]
    installed.run("systemctl stop greeterd greeterd@one")


def test_a_daemon_without_a_unit_has_its_user_and_directories(installed: Installed) -> None:
    installed.run("systemctl stop greeterd && rm -rf /var/log/greeterd /var/log/private/greeterd")
    installed.follow(UNITS / "greeterd.sysusers.conf")
    installed.follow(UNITS / "greeterd.tmpfiles.conf")
    for directory, owner in (("/run/greeterd", "root"), ("/var/log/greeterd", "greeterd")):
        assert installed.run(f"stat -c '%U %G %a' {directory}") == f"{owner} {owner} 750\n"
    installed.run(
        "/opt/greeterd/bin/greeterd --daemonize --user greeterd --log-dir /var/log/greeterd"
    )
    installed.greet()
    assert installed.run("stat -c %U /var/log/greeterd/worker-1.log") == "greeterd\n"
    installed.run("/opt/greeterd/bin/greeterctl stop")
    until(lambda: not installed.run("pgrep -f bin/greeterd", check=False), what="its end")


def test_what_the_document_removes_is_gone(installed: Installed) -> None:
    removal = SYSTEMD.block("As a service", "sh", "systemctl disable").splitlines()
    named = [word for line in removal for word in line.split() if word.startswith("/")]
    for command in removal:
        installed.run(command)
    assert named
    assert [path for path in named if installed.container.path(path).exists()] == []
    assert installed.show("ActiveState") == "inactive"
