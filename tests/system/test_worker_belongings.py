"""All that a worker of a root master has: what an attacker in its place could use, and why.

The list is exact: what is not named here must not be there. Run with -s to read it.
"""

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from greeterd.system.files import Identity, acting_as
from greeterd.system.privileges import resolve
from tests.support import until
from tests.system import parents, proc
from tests.system.books import worker_of
from tests.system.clients import greet
from tests.system.conftest import StartDaemon
from tests.system.harness import MARK, Daemon
from tests.system.image import Image
from tests.system.test_confinement import told

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who has things to leave")

MODES = ("inherit", "reuseport", "handoff")
SECRET = "do not tell"
SYSCALLS = parents.SYSCALLS.get(os.uname().machine, {"add_key": -1, "keyctl": -1})

PARENT = f"""
import ctypes
os.environ["SECRET"] = {SECRET!r}
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall({SYSCALLS["keyctl"]}, 1, None)  # KEYCTL_JOIN_SESSION_KEYRING
key = libc.syscall({SYSCALLS["add_key"]}, b"user", b"greeterd", b"secret", 6, -3)
os.environ["HAS_KEY"] = str(key > 0)
"""

PROBE = f"""
        import ctypes, json
        libc = ctypes.CDLL(None, use_errno=True)
        found = libc.syscall({SYSCALLS["keyctl"]}, 10, -3, b"user", b"greeterd", 0)
        facts = {{"environ": dict(os.environ), "key": found, "dumpable": libc.prctl(3, 0, 0, 0, 0)}}
        path = context.config.log_dir / f"facts-{{context.slot}}.json"
        path.write_text(json.dumps(facts))
        worker.run()
"""
"""What only the worker itself can tell: KEYCTL_SEARCH in its session keyring, PR_GET_DUMPABLE."""


class Belongings:
    """A worker's, read from outside where the kernel tells, and from inside where only it can."""

    def __init__(self, server: Daemon, slot: int) -> None:
        self.server = server
        self.pid = worker_of(server, slot)
        file = server.log_dir / f"facts-{slot}.json"
        until(lambda: file.exists() and file.read_text(), what="what the worker tells")
        self.facts: dict[str, Any] = json.loads(file.read_text())

    def descriptors(self) -> dict[str, int]:
        """Return how many of each kind are open."""
        found: dict[str, int] = {}
        for each in proc.links(self.pid):
            kind = re.sub(r":\[.*| \(deleted\)$", "", each)
            found[kind] = found.get(kind, 0) + 1
        return found

    def shared_memory(self) -> list[str]:
        """Return what it can write that others read: shared, writable mappings."""
        lines = Path(f"/proc/{self.pid}/maps").read_text().splitlines()
        return [line.split(maxsplit=5)[-1] for line in lines if re.match(r"\S+ .w.s ", line)]

    def environment(self) -> dict[str, str]:
        """Return what /proc/PID/environ shows."""
        block = Path(f"/proc/{self.pid}/environ").read_bytes().split(b"\0")
        return dict(each.decode().split("=", 1) for each in block if each)


def writable(identity: Identity, paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the directories and files that one may write."""
    with acting_as(identity):
        for path in paths:
            if os.access(path, os.W_OK, effective_ids=True):
                yield path


@pytest.mark.parametrize("mode", MODES)
def test_a_worker_has_nothing_but_what_is_listed(
    daemon: StartDaemon, image: Image, mode: str
) -> None:
    image.spoil("worker/main.py", r"\n        worker\.run\(\)", PROBE)
    image.package.parent.chmod(0o755)
    server = daemon(
        f"--mode={mode}", "--workers=2", "--user=nobody", "--reply",
        prefix=parents.after(PARENT), environment=image.environment | {"LANG": "C.UTF-8"},
    )  # fmt: skip
    greet(server.address, "Alice")
    one = Belongings(server, 1)
    nobody = resolve("nobody", None)
    assert nobody is not None

    def line(what: str, is_so: object, reason: str) -> None:
        print(f"{what:26} {is_so!s:60} {reason}")

    line("user, groups", told(one.pid, "Uid"), "the setting user, and no other group")
    assert {*map(int, told(one.pid, "Uid").split())} == {nobody.uid}
    assert {*map(int, told(one.pid, "Gid").split())} == {nobody.gid}
    assert told(one.pid, "Groups") == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        line(name, told(one.pid, name), "nothing that it executes could have any, either")
        if name != "CapBnd" or "setpcap" in capabilities(os.getpid()):
            assert int(told(one.pid, name), 16) == 0, name
    assert told(one.pid, "NoNewPrivs") == "1"
    line("dumpable", one.facts["dumpable"], "siblings cannot trace it")
    assert one.facts["dumpable"] == 0
    had = dict(each.split("=", 1) for each in environment_of(server.pid)).get("HAS_KEY")
    line("root's keys", one.facts["key"] > 0, f"a new session keyring (master has one: {had})")
    assert one.facts["key"] == -1
    line("variables", " ".join(one.facts["environ"]), "the zone and the language")
    assert SECRET not in str(one.facts["environ"])
    assert {*one.facts["environ"]} <= {"PATH", "LANG", MARK, *locale(one.facts["environ"])}
    assert one.environment() == one.facts["environ"], "the block of the kernel is overwritten"

    expected = {
        "/dev/null": (1, "standard input"),
        str(server.stderr): (3, "standard output and error; the daemon log, in the foreground"),
        "pipe": (2, "its signals"),
        "/memfd:greeterd-stack": (1, "where its stack is written when it is aborted"),
        "/memfd:greeterd-log-lock": (1, "what its slot's workers lock while they write their log"),
        "anon_inode": (1, "epoll"),
        "socket": (2, "the channel, and a listener or the exit of its pair"),
        str(server.log_dir / "worker-1.log"): (1, "its log"),
    }
    for kind, number in one.descriptors().items():
        line(f"{number} descriptor(s)", kind, expected.get(kind, (0, "NOT LISTED"))[1])
    assert one.descriptors() == {kind: number for kind, (number, _) in expected.items()}
    for name in one.shared_memory():
        line("writable shared mapping", name, "its counters")
    assert one.shared_memory() == ["/memfd:greeterd-row (deleted)"]

    seen = [server.directory, *server.directory.rglob("*"), Path("/"), Path.cwd()]
    can = [*writable(nobody, seen)]
    for path in can:
        line("may write", path.relative_to(server.directory), "the log directory and what is in it")
    assert all(server.log_dir in (path, *path.parents) for path in can)
    assert server.log_dir in can
    modes = {stat.S_IMODE(path.stat().st_mode) & 0o002 for path in can}
    assert modes == {0}


def environment_of(pid: int) -> list[str]:
    """Return NAME=VALUE of /proc/PID/environ."""
    return [
        each.decode() for each in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if each
    ]


def locale(names: Iterable[str]) -> list[str]:
    """Return the names of what a locale is made of."""
    return [name for name in names if name.startswith("LC_")]


def capabilities(pid: int) -> list[str]:
    """Return of the capabilities that a test asks for those that a process may use."""
    return ["setpcap"] if int(told(pid, "CapEff"), 16) >> 8 & 1 else []


def test_a_worker_that_stays_root_says_so_and_keeps_its_capabilities_alone(
    daemon: StartDaemon,
) -> None:
    server = daemon("--workers=1")
    assert server.events("workers are root")[0]["level"] == "warning"
    worker = worker_of(server, 1)
    assert told(worker, "CapEff") == told(server.pid, "CapEff")
    names = ["CapInh", "CapAmb"]
    if capabilities(os.getpid()):
        names.append("CapBnd")
    assert [int(told(worker, name), 16) for name in names] == [0] * len(names)
    assert daemon("--workers=1", "--user=nobody").events("workers are root") == []


@pytest.mark.parametrize("allowed", [False, True])
def test_a_worker_is_dumpable_where_core_files_are_wanted(
    daemon: StartDaemon, image: Image, allowed: bool
) -> None:
    image.spoil("worker/main.py", r"\n        worker\.run\(\)", PROBE)
    image.package.parent.chmod(0o755)
    flag = "--core-dumps" if allowed else "--no-core-dumps"
    server = daemon("--workers=1", "--user=nobody", flag, environment=image.environment)
    assert Belongings(server, 1).facts["dumpable"] == int(allowed)
