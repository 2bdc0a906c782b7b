"""Upgrades under load: no client is failed, and nothing is left behind.

Every fifth one is broken on purpose. It is refused with its reason, and no process is disturbed.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import until
from tests.system.books import assert_gap_free, quiet_totals
from tests.system.clients import Load, greet
from tests.system.conftest import StartDaemon
from tests.system.footprint import Footprint, memory_bytes
from tests.system.harness import Daemon
from tests.system.image import Image, versions
from tests.system.sizes import sized

TIMES = sized(50, 5)
EACH = 5  # one of so many is broken
PATIENCE = 30  # start_timeout: more than an honest start takes under load on a slow machine
HANG = 2  # start_timeout where a hang is waited for
MODES = pytest.mark.parametrize("mode", ["inherit", "reuseport", "handoff"])


def rewrite(file: Path, old: str, new: str) -> None:
    """Replace some text of a file."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


Spoil = Callable[[Image, Path], None]
BREAKAGES: dict[str, tuple[Spoil, str]] = {
    "syntax error": (
        lambda image, _: image.spoil("worker/main.py", r"def main", "def def main"),
        r"exit status 1\): SyntaxError: invalid syntax",
    ),
    "crash in a worker's start": (
        lambda image, _: image.spoil(
            "worker/main.py",
            r"(\n    title_worker\(.*\n)",
            r"\1    raise RuntimeError('on purpose')\n",
        ),
        r"exit status 70\): (worker 1|the dispatcher) ended, or said nothing, before it was ready",
    ),
    "hang in a worker's start": (
        lambda image, _: image.spoil(
            "worker/main.py", r"(\n    title_worker\(.*\n)", r"\1    __import__('signal').pause()\n"
        ),
        rf"the new image was not ready within ({HANG}|{PATIENCE}) s",
    ),
    "exception at import": (
        lambda image, _: image.spoil(
            "master/master.py", r"\nTICK: ", "\nraise RuntimeError('on purpose')\nTICK: "
        ),
        r"exit status 1\): RuntimeError: on purpose",
    ),
    "bad configuration": (
        lambda _, file: rewrite(file, "workers = 2", "werkers = 2"),
        r"exit status 78\): file .*, key werkers: no such setting; did you mean workers\?",
    ),
    "changed fixed setting": (
        lambda _, file: rewrite(file, "127.0.0.1", "127.0.0.2"),
        r"exit status 78\): only a restart changes bind",
    ),
    "killed": (
        lambda image, _: image.spoil(
            "master/upgrade/preflight.py",
            r"\n    log = ",
            "\n    os.kill(os.getpid(), 9)\n    log = ",
        ),
        r"killed by SIGKILL\): it said nothing",
    ),
    "hang at import": (
        lambda image, _: image.spoil(
            "master/escrow/listeners.py",
            r"\nBLOCKING_TIMEOUT",
            "\nimport signal\nsignal.pause()\nBLOCKING_TIMEOUT",
        ),
        rf"the new image was not ready within ({HANG}|{PATIENCE}) s",
    ),
    "no program": (
        lambda image, _: image.spoil("cli/greeterd.py", r"def main", "def niam"),
        r"exit status 1\): AttributeError: module 'greeterd.cli.greeterd' has no attribute 'main'",
    ),
    "lost run lock": (
        lambda image, _: image.spoil(
            "system/pidfile.py", r"(def adopt.*:\n)", r"\1        fd = 0\n"
        ),
        r"exit status 70\): descriptor 0 is not the run lock",
    ),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a configuration file."""
    path = tmp_path / "greeterd.toml"
    path.write_text(
        f'bind = ["127.0.0.1:0"]\nworkers = 2\nreply = true\nstart_timeout = {PATIENCE}\n'
    )
    return path


def start(daemon: StartDaemon, image: Image, file: Path, *arguments: str) -> Daemon:
    """Start a daemon from the image with the file."""
    return daemon(
        *("--config", str(file), *arguments), without={"--bind"}, environment=image.environment
    )


def processes(server: Daemon) -> tuple[int, list[int]]:
    """Wait until only who serves is there; return the pids of the master and of the workers."""

    def settled() -> bool:
        status = server.status()
        rows = [*status["workers"], *status["dispatcher"]]
        serving = {server.pid, *(one["pid"] for one in rows if one["state"] == "ready")}
        return len(serving) == 1 + len(rows) and serving == {*server.processes()}

    until(settled)
    return server.pid, server.worker_pids()


def upgrade(server: Daemon, image: Image, version: str) -> None:
    """Upgrade to this version, which all processes run then."""
    image.release(version)
    before = processes(server)
    done = server.ctl("upgrade")
    assert (done.returncode, done.stderr) == (0, "")
    master, workers = processes(server)
    assert master == before[0]
    assert not set(workers) & set(before[1])
    assert server.status()["version"] == version
    assert versions([master, *workers]) == {version}


def refuse(server: Daemon, image: Image, file: Path, version: str, name: str) -> None:
    """Upgrade to this version, which is broken: nothing happens but an answer with the reason."""
    spoil, reason = BREAKAGES[name]
    was, before, count = server.status()["version"], processes(server), len(server.processes())
    settings = file.read_text()
    image.release(version)
    spoil(image, file)
    done = server.ctl("upgrade")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(reason, done.stderr), done.stderr
    assert re.search(reason, server.events("upgrade failed")[-1]["reason"])
    if "Error" in reason:
        assert 'File "' in server.events("new image refused")[-1]["said"]
    status = server.status()
    assert (status["version"], status["state"]) == (was, "running")
    assert re.search(reason, status["last_error"])
    assert processes(server) == before
    assert versions([before[0], *before[1]]) == {was}
    until(lambda: len(server.processes()) == count, what="the trial is gone")
    image.mend()
    file.write_text(settings)


@pytest.mark.shows("command upgrade")
@MODES
def test_upgrades_under_load_fail_nobody_and_leave_nothing_behind(
    daemon: StartDaemon, image: Image, file: Path, mode: str
) -> None:
    server = start(daemon, image, file, "--mode", mode)
    greet(server.address, "Alice")
    before, memory = Footprint.of(server), []
    names = list(BREAKAGES)
    with Load(server.address, processes=1, concurrency=16, reply=True) as load:
        load.wait_going()
        for number in range(TIMES):
            if number % EACH == EACH - 1:
                name = names[number // EACH % len(names)]
                refuse(server, image, file, f"0.{number}", name)
            else:
                upgrade(server, image, f"1.{number}")
                memory.append(memory_bytes(server.pid))
        result = load.stop()
    deaf = [one["deaf"] for one in server.events("new image")]
    print(f"served {result.total}, slowest {result.slowest:.3f} s, deaf {max(deaf):.3f} s at most")
    print(f"memory of the master {memory[0] >> 10} KiB, then {max(memory) >> 10} KiB at most")
    assert result.lost == {}
    quiet_totals(server, connections=result.total + 1)
    before.is_left_by(server)
    assert max(memory) < 1.1 * memory[0] + 2**20
    greetings = server.greetings()
    assert Counter(one["name"] for one in greetings) == Counter([*result.names["ok"], "Alice"])
    assert_gap_free(greetings)
    assert server.events("worker died") == []


@pytest.mark.shows("command upgrade refused", "when an upgrade fails")
@pytest.mark.parametrize("name", BREAKAGES)
def test_an_image_that_cannot_start_is_refused_with_its_reason(
    daemon: StartDaemon, image: Image, file: Path, name: str
) -> None:
    hangs = name.startswith("hang")
    if hangs:
        rewrite(file, f"timeout = {PATIENCE}", f"timeout = {HANG}")
    server = start(daemon, image, file)
    before = Footprint.of(server)
    refuse(server, image, file, "2", name)
    before.is_left_by(server)
    assert greet(server.address, "Alice") == "Hello, Alice\n"
    if hangs:
        rewrite(file, f"timeout = {HANG}", f"timeout = {PATIENCE}")
        assert server.ctl("reload").returncode == 0
    upgrade(server, image, "3")
    assert greet(server.address, "Alice") == "Hello, Alice\n"
