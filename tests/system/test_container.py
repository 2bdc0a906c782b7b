"""The container: a real systemd, which ends without a trace."""

import sys
from pathlib import Path

from tests.system.container import Container
from tests.system.harness import ROOT

UNIT = f"""
[Service]
ExecStart={sys.executable} -c "import greeterd; print('version', greeterd.__version__)"
WorkingDirectory={ROOT}
Type=oneshot
"""


def traces(container: Container) -> list[str]:
    """Return what shows on the host that the container is there."""
    mounts = Path("/proc/self/mountinfo").read_text()
    found = [line for line in mounts.splitlines() if container.directory.name in line]
    found += [str(path) for path in (container.directory, container.cgroup) if path.exists()]
    if Path(f"/proc/{container.pid}").exists():
        found.append(f"pid {container.pid}")
    return found


def test_systemd_is_pid_1_and_no_unit_failed(container: Container) -> None:
    assert container.run("cat", "/proc/1/comm").stdout == "systemd\n"
    assert container.run("systemctl", "--failed", "--plain", "--no-legend").stdout == ""
    assert container.state() == "running"


def test_a_unit_runs_the_projects_interpreter_and_its_words_are_in_the_journal(
    container: Container,
) -> None:
    container.path("/etc/systemd/system/hello.service").write_text(UNIT)
    container.run("systemctl", "daemon-reload")
    container.run("systemctl", "start", "hello.service")
    assert "version" in container.journal("hello.service")


def test_what_is_written_in_the_container_does_not_reach_the_host(container: Container) -> None:
    container.run("touch", "/etc/written-inside")
    assert container.path("/etc/written-inside").exists()
    assert not Path("/etc/written-inside").exists()


def test_the_container_has_a_network_of_its_own(container: Container) -> None:
    assert container.path("/sys/class/net").is_dir()
    assert container.run("ls", "/sys/class/net").stdout.split() == ["lo"]


def test_a_stopped_container_leaves_nothing_behind() -> None:
    with Container() as container:
        assert traces(container)
    assert traces(container) == []


def test_a_container_whose_test_failed_leaves_nothing_behind() -> None:
    container = Container()
    container.close()  # without a shutdown, as after a time-out of it
    assert traces(container) == []
