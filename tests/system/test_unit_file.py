"""The unit files: systemd's opinion of them, and that they fit the code and one another."""

import configparser
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from greeterd.config.schema import MAX_WORKERS, Config
from greeterd.errors import AlreadyRunningError, ConfigError, ListenError, UsageError
from tests.system.harness import ROOT
from tests.system.unit import ADDRESS, UNITS

SERVICE, TEMPLATE = UNITS / "greeterd.service", UNITS / "greeterd@.service"
SOCKETS = [UNITS / "greeterd.socket", UNITS / "greeterd-reuseport.socket"]
PROGRAMS = r"/opt/greeterd/bin/\w+"
WORST_EXPOSURE = 1.5  # of 10, by systemd 252; without any hardening it is 9.6

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


def settings(section: str, unit: Path = SERVICE) -> dict[str, str]:
    """Return a section's settings; of one that is repeated, the last."""
    parser = configparser.RawConfigParser(strict=False, comment_prefixes="#", delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    return dict(parser[section])


def head(file: Path) -> str:
    """Return the comment that a file begins with."""
    return file.read_text().partition("\n\n")[0]


@needs_systemd_analyze
def test_systemd_has_nothing_to_say_against_the_units(tmp_path: Path) -> None:
    for unit in (SERVICE, TEMPLATE, *SOCKETS):
        # An instance, since a template alone is not looked at; programs that are installed.
        copy = tmp_path / unit.name.replace("@", "@one")
        copy.write_text(re.sub(PROGRAMS, "/bin/true", unit.read_text()))
    for copy in sorted(tmp_path.iterdir()):
        done = analyze("verify", "--man=no", str(copy))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), copy.name


@needs_systemd_analyze
def test_the_drop_in_is_for_systemd_253_and_newer(tmp_path: Path) -> None:
    service = tmp_path / SERVICE.name
    service.write_text(re.sub(PROGRAMS, "/bin/true", SERVICE.read_text()))
    drop_in = tmp_path / f"{SERVICE.name}.d" / "notify-reload.conf"
    drop_in.parent.mkdir()
    drop_in.write_text((UNITS / drop_in.name).read_text())
    done = analyze("verify", "--man=no", str(service))
    version = re.search(r"systemd (\d+)", analyze("--version").stdout)
    assert version
    told = "" if int(version[1]) >= 253 else "ignoring: notify-reload"
    assert told in done.stderr
    assert bool(told) == bool(done.stderr)


@needs_systemd_analyze
@pytest.mark.parametrize("unit", [SERVICE, TEMPLATE], ids=lambda unit: unit.name)
def test_the_sandbox_is_tight(unit: Path) -> None:
    done = analyze("security", "--offline=yes", str(unit))
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= WORST_EXPOSURE


@pytest.mark.shows("service a failure")
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
    assert int(service["FileDescriptorStoreMax"]) == MAX_WORKERS + 1


def test_the_sockets_stand_for_the_default_configuration() -> None:
    default: dict[str, Any] = {field.name: field.default for field in fields(Config)}
    for unit in SOCKETS:
        socket = settings("Socket", unit)
        assert (socket["ListenStream"],) == default["bind"] == (ADDRESS,)
        assert int(socket["Backlog"]) == default["backlog"]


def test_an_instance_differs_from_the_service_in_its_places_only() -> None:
    def body(unit: Path) -> list[str]:
        return ("[Unit]" + unit.read_text().partition("\n[Unit]")[2]).splitlines()

    pairs = zip(body(SERVICE), body(TEMPLATE), strict=True)
    assert [both for both in pairs if both[0] != both[1]] == [
        ("Description=Pre-fork greeting server", "Description=Pre-fork greeting server (%i)"),
        (
            "ExecStart=/opt/greeterd/bin/greeterd --config /etc/greeterd/greeterd.toml",
            "ExecStart=/opt/greeterd/bin/greeterd --config /etc/greeterd/%i.toml",
        ),
        ("LogsDirectory=greeterd", "LogsDirectory=greeterd-%i"),
        ("RuntimeDirectory=greeterd", "RuntimeDirectory=greeterd-%i"),
    ]


def test_each_head_installs_files_that_are_there() -> None:
    shown = head(SERVICE)
    for file in {*UNITS.iterdir()} - {UNITS / "README.md"}:
        assert file.name in shown, "the head of the service names all that belongs to it"
        commands = re.findall(r"^#   install .* ([a-z]+/\S+) /\S+$", head(file), re.MULTILINE)
        assert commands, file.name
        assert f"systemd/{file.name}" in commands
        for path in commands:
            assert (ROOT / path).is_file(), path
