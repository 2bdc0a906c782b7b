"""The unit file: systemd's opinion of it, that it fits the code, and the daemon in its sandbox."""

import configparser
import contextlib
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from greeterd.config import Config
from greeterd.errors import AlreadyRunningError, ConfigError, ListenError, UsageError
from tests.support import until
from tests.system.container import Container
from tests.system.harness import ROOT

UNIT = ROOT / "systemd" / "greeterd.service"
PROGRAM = "/opt/greeterd/bin/greeterd"
WORST_EXPOSURE = 1.5  # of 10, by systemd 252; without any hardening it is 9.6

CLIENT = """
import socket, sys
with socket.create_connection(("127.0.0.1", 12345)) as sock:
    sock.sendall(sys.argv[1].encode())
    sock.shutdown(socket.SHUT_WR)
    print(sock.recv(99).decode())
"""

needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing"
)


def analyze(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def settings(section: str) -> dict[str, str]:
    """Return a section's settings; of one that is repeated, the last."""
    parser = configparser.RawConfigParser(strict=False, comment_prefixes="#", delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return dict(parser[section])


@needs_systemd_analyze
def test_systemd_has_nothing_to_say_against_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(PROGRAM, "/bin/true"))  # which is installed
    done = analyze("verify", "--man=no", str(unit))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd_analyze
def test_the_sandbox_is_tight() -> None:
    done = analyze("security", "--offline=yes", str(UNIT))
    found = re.search(r"Overall exposure level for greeterd\.service: ([0-9.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= WORST_EXPOSURE


def test_the_unit_fits_the_codes_exit_codes_and_defaults() -> None:
    service = settings("Service")
    prevented = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert prevented == {UsageError.exit_code, ConfigError.exit_code}, "a restart mends neither"
    assert not prevented & {ListenError.exit_code, AlreadyRunningError.exit_code}
    default: dict[str, Any] = {field.name: field.default for field in fields(Config)}
    assert float(service["TimeoutStopSec"]) > default["graceful_timeout"]
    assert float(service["TimeoutStartSec"]) > default["start_timeout"]
    assert int(service["LimitNOFILE"]) > default["max_connections"]
    assert int(service["UMask"], 8) == default["umask"]


def test_the_head_installs_what_the_unit_starts() -> None:
    assert settings("Service")["ExecStart"].split()[0] == PROGRAM
    head = UNIT.read_text().partition("[Unit]")[0]
    assert f"{Path(PROGRAM).parent}/pip install" in head
    for path in re.findall(r"^#   install .* ([a-z]+/\S+) /etc/", head, re.MULTILINE):
        assert (ROOT / path).is_file(), path


@pytest.fixture
def service(container: Container) -> Container:
    """Install the unit as its head says, but with the project's own interpreter."""
    program = container.path(PROGRAM)
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -B -m greeterd "$@"\n')
    program.chmod(0o755)
    config = container.path("/etc/greeterd/greeterd.toml")
    config.parent.mkdir()
    config.write_text('workers = 2\nreply = true\nmode = "reuseport"\n')
    container.path("/etc/systemd/system/greeterd.service").write_text(UNIT.read_text())
    # The interpreter may lie in somebody's home, which the unit hides: only that is let in.
    for directory in Path(sys.base_prefix).parents:
        with contextlib.suppress(OSError):
            inside = container.path(str(directory))
            inside.chmod(inside.stat().st_mode | 0o011)
    drop_in = container.path("/etc/systemd/system/greeterd.service.d/interpreter.conf")
    drop_in.parent.mkdir()
    drop_in.write_text(f"[Service]\nProtectHome=no\nEnvironment=PYTHONPATH={ROOT}\n")
    container.run("systemctl", "daemon-reload")
    return container


def show(container: Container, name: str) -> str:
    return container.run("systemctl", "show", "--value", "-p", name, "greeterd").stdout.strip()


def greet(container: Container, name: str) -> str:
    return container.run(sys.executable, "-c", CLIENT, name).stdout


def test_the_daemon_does_all_its_work_within_the_sandbox(service: Container) -> None:
    service.run("systemctl", "start", "greeterd")
    master = show(service, "MainPID")
    status = service.path(f"/proc/{master}/status").read_text()
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    assert not re.search(r"^Uid:\t0\t", status, re.MULTILINE)
    assert "Hello, Alice" in greet(service, "Alice")

    service.run("systemctl", "reload", "greeterd")
    until(lambda: "reload done" in service.journal("greeterd"), what="the end of the reload")
    assert "Hello, Bob" in greet(service, "Bob")

    service.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "greeterd")
    until(lambda: show(service, "NRestarts") == "1", timeout=20, what="the restart")
    until(lambda: show(service, "ActiveState") == "active", timeout=20, what="the new master")
    assert show(service, "MainPID") != master
    assert "Hello, Carol" in greet(service, "Carol")

    service.run("systemctl", "stop", "greeterd")
    assert show(service, "Result") == "success", service.journal("greeterd")
    assert show(service, "ExecMainStatus") == "0"
    logs = service.run("bash", "-c", "cat /var/log/greeterd/worker-*.log").stdout
    assert [logs.count(f"Hello, {name}") for name in ("Alice", "Bob", "Carol")] == [1, 1, 1]
    assert "Operation not permitted" not in service.journal("greeterd")
