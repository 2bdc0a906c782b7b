"""How a daemon begins: with what its parent has left behind, and with what the system refuses it.

Before its handlers, with few descriptors, without its start directory.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import psutil
import pytest

from greeterd.master.descriptors import needed
from tests.support import until
from tests.system import proc
from tests.system.books import worker_of
from tests.system.clients import greet
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon
from tests.system.image import Image
from tests.system.parents import after, refusing
from tests.system.test_confinement import told

MODES = ("inherit", "reuseport", "handoff")
DETACH = pytest.mark.parametrize("detach", [[], ["--daemonize"]], ids=["foreground", "detached"])

Signals = signal.Signals


def begin(daemon: StartDaemon, *arguments: str, **options: object) -> Daemon:
    """Start a daemon that is ready, detached or not."""
    server = daemon(*arguments, wait=False, **options)
    if "--daemonize" in arguments:
        assert server.process.wait(30.0) == 0, server.log_text()
    server.wait_event("ready")
    return server


def signals_of(pid: int, name: str) -> set[int]:
    """Return the signals in a mask of /proc/PID/status: SigBlk, SigIgn or SigCgt."""
    mask = int(told(pid, name), 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def refusal(server: Daemon, code: int) -> str:
    """Return the one line by which a start was refused with this exit code."""
    assert server.wait() == code, server.log_text()
    said = server.stderr.read_text().splitlines()
    assert [line.partition(": ")[0] for line in said] == ["greeterd"], said
    return said[0].removeprefix("greeterd: ")


# What a parent leaves behind ----------------------------------------------------------------

BLOCKED = after("signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())")
IGNORED = after("""
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
""")
BACKGROUND = after("""
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGQUIT, signal.SIG_IGN)
""")
CPYTHON_IGNORES = {Signals.SIGPIPE, Signals.SIGXFSZ}
KEYS = {Signals.SIGINT, Signals.SIGQUIT, Signals.SIGTSTP}


@DETACH
@pytest.mark.parametrize("parent", [BLOCKED, IGNORED], ids=["blocks all", "ignores all"])
def test_a_parent_that_blocks_or_ignores_every_signal_changes_nothing(
    daemon: StartDaemon, parent: tuple[str, ...], detach: list[str]
) -> None:
    server = begin(daemon, "--workers=1", "--reply", *detach, prefix=parent)
    master, worker = server.pid, worker_of(server, 1)
    assert [signals_of(pid, "SigBlk") for pid in (master, worker)] == [set(), set()]
    keys = KEYS if parent is IGNORED and not detach else set()
    assert signals_of(master, "SigIgn") == CPYTHON_IGNORES | keys
    server.signal(signal.SIGHUP)
    server.wait_event("reload done")
    worker = worker_of(server, 1)
    os.kill(worker, signal.SIGKILL)
    until(lambda: worker_of(server, 1) not in {0, worker}, what="a dead worker is replaced")
    assert greet(server.address, "Alice") == "Hello, Alice\n"
    assert server.stop() == 0


def test_a_background_job_is_not_stopped_by_the_keys_of_a_terminal(daemon: StartDaemon) -> None:
    server = daemon("--workers=1", prefix=BACKGROUND)
    for generation in (1, 2):
        server.signal(signal.SIGINT)
        server.signal(signal.SIGQUIT)
        assert server.status()["generation"] == generation
        assert {Signals.SIGINT, Signals.SIGQUIT} <= signals_of(server.pid, "SigIgn")
        if generation == 1:  # nor is what takes its place
            assert server.ctl("upgrade").returncode == 0
    assert server.events("signal") == []
    assert server.stop() == 0


def test_detached_int_counts_also_when_a_script_had_it_ignored(daemon: StartDaemon) -> None:
    server = begin(daemon, "--workers=1", "--daemonize", prefix=BACKGROUND)
    assert server.stop(signal.SIGINT) == 0
    assert [each["signal"] for each in server.events("signal")] == ["SIGINT"]


def test_a_death_is_found_though_the_kernel_s_signal_never_comes(
    daemon: StartDaemon, image: Image
) -> None:
    image.spoil("system/signals.py", r"\n    signal\.SIGCHLD,", "")
    server = daemon("--workers=2", "--reply", environment=image.environment)
    for count in range(1, 4):
        os.kill(worker_of(server, 1), signal.SIGKILL)
        server.wait_event("worker ready", count=2 + count)
    assert [each["reason"] for each in server.events("worker exited")] == ["killed by SIGKILL"] * 3
    assert server.stop() == 0


# Signals before their handlers --------------------------------------------------------------

WAIT = """
import os, select
Path({asked!r}).touch()
while not os.path.exists({gate!r}):
    select.select([], [], [], 0.01)
"""


class Held:
    """A daemon that is held up in the midst of its start until it is let go."""

    def __init__(self, directory: Path) -> None:
        self.asked, self.gate = directory / "asked", directory / "gate"
        self.code = WAIT.format(asked=str(self.asked), gate=str(self.gate))

    def reached(self) -> None:
        """Wait until it is there."""
        until(self.asked.exists, timeout=30.0, what="the start is held up")


@pytest.fixture
def locked(image: Image, tmp_path: Path) -> Held:
    """Hold up the image where its pid is published, and the master has no handlers yet."""
    held = Held(tmp_path)
    code = held.code.replace("\n", "\n        ")
    image.spoil(
        "master/master.py",
        r"\n        set_limits\(config\)",
        code + r"\n        set_limits(config)",
    )
    return held


@DETACH
@pytest.mark.parametrize(
    ("early", "outcomes", "workers"),
    [
        (["SIGHUP", "SIGUSR1", "SIGCHLD"], ["logs reopened", "reload done"], 1),
        (["SIGTTIN"], ["scale done"], 2),
        (["SIGUSR2"], ["upgrade done"], 1),
    ],
)
def test_signals_that_come_before_the_handlers_are_handled_afterwards(
    *,
    daemon: StartDaemon,
    image: Image,
    locked: Held,
    detach: list[str],
    early: list[str],
    outcomes: list[str],
    workers: int,
) -> None:
    server = daemon("--workers=1", *detach, environment=image.environment, wait=False)
    locked.reached()
    until(lambda: server.pid != server.process.pid or not detach)
    for name in early:
        server.signal(signal.Signals[name])
    locked.gate.touch()
    server.wait_event("ready")
    for outcome in outcomes:
        server.wait_event(outcome)
    assert {each["signal"] for each in server.events("signal")} == set(early) - {"SIGCHLD"}
    until(lambda: len(server.worker_pids()) == workers, what="all workers")
    assert server.stop() == 0


@DETACH
@pytest.mark.parametrize("number", [Signals.SIGTERM, Signals.SIGINT, Signals.SIGQUIT])
def test_a_stop_that_comes_before_the_handlers_is_a_clean_one(
    daemon: StartDaemon, image: Image, locked: Held, detach: list[str], number: Signals
) -> None:
    server = daemon("--workers=1", *detach, environment=image.environment, wait=False)
    locked.reached()
    until(lambda: server.pid != server.process.pid or not detach)
    server.signal(number)
    locked.gate.touch()
    code = server.wait()
    assert [each["code"] for each in server.events("stopped")] == [0]
    assert code == (0 if not detach else 70), "the launcher has waited for one that serves"
    assert [*server.run_dir.iterdir()] == []


@pytest.fixture
def resolving(tmp_path: Path) -> tuple[Held, dict[str, str]]:
    """Return what holds up the resolver, and the environment of a daemon that has that one."""
    held = Held(tmp_path)
    (tmp_path / "sitecustomize.py").write_text(f"""
import socket
from pathlib import Path
look_up = socket.getaddrinfo
def slow(*arguments, **options):
    {held.code.replace(chr(10), chr(10) + "    ")}
    return look_up(*arguments, **options)
socket.getaddrinfo = slow
""")
    return held, {"PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize("number", [Signals.SIGTERM, Signals.SIGINT, Signals.SIGQUIT])
def test_who_waits_for_the_resolver_can_be_ended_and_is_known_to_nobody(
    daemon: StartDaemon, resolving: tuple[Held, dict[str, str]], number: Signals
) -> None:
    held, environment = resolving
    server = daemon("--bind=localhost:0", environment=environment, wait=False)
    held.reached()
    assert not server.run_dir.exists()
    server.signal(number)
    assert server.wait() == -number
    assert server.stderr.read_text() == ""


def test_what_is_asked_while_the_resolver_is_waited_for_is_done_afterwards(
    daemon: StartDaemon, resolving: tuple[Held, dict[str, str]]
) -> None:
    held, environment = resolving
    server = daemon(
        "--bind=localhost:0", "--workers=1", environment=environment, prefix=BLOCKED, wait=False
    )
    held.reached()
    for name in ("SIGHUP", "SIGUSR1", "SIGCHLD"):
        server.signal(signal.Signals[name])
    held.gate.touch()
    for outcome in ("ready", "logs reopened", "reload done"):
        server.wait_event(outcome)
    assert server.stop() == 0


# What the system refuses --------------------------------------------------------------------


def without(*calls: str) -> tuple[str, ...]:
    """Return the prefix of a parent whose seccomp filter refuses system calls."""
    prefix = refusing(*calls)
    if prefix is None:
        pytest.skip(f"the numbers of system calls are not known for {os.uname().machine}")
    return prefix


def serves(server: Daemon) -> None:
    """Greet, reload, upgrade and lose a worker, then stop."""
    assert greet(server.address, "Alice") == "Hello, Alice\n"
    assert server.ctl("reload").returncode == 0
    upgraded = server.ctl("upgrade")
    assert upgraded.returncode == 0, upgraded.stderr
    worker = worker_of(server, 1)
    os.kill(worker, signal.SIGKILL)
    until(lambda: worker_of(server, 1) not in {0, worker}, what="another worker")
    assert greet(server.address, "Bob") == "Hello, Bob\n"
    assert server.stop() == 0
    assert "Traceback" not in server.log_text()


@pytest.mark.parametrize("call", ["sched_getaffinity", "prlimit64", "keyctl", "pidfd_open"])
def test_what_can_be_done_without_is_done_without(daemon: StartDaemon, call: str) -> None:
    serves(daemon("--workers=2", "--reply", prefix=without(call)))


@pytest.mark.shows("exit 71 greeterd")
@DETACH
def test_what_is_needed_and_refused_is_one_line_and_71(
    daemon: StartDaemon, detach: list[str]
) -> None:
    server = daemon("--workers=1", *detach, prefix=without("memfd_create"), wait=False)
    assert refusal(server, 71) == "memfd_create: Operation not permitted"
    server = daemon("--workers=1", *detach, prefix=without("epoll_create1"), wait=False)
    assert server.wait() == 71
    assert "worker 1 did not start: Operation not permitted (" in server.log_text()
    assert "Traceback" not in server.log_text()


def test_a_detached_start_that_may_not_ask_for_limits_says_so(daemon: StartDaemon) -> None:
    server = daemon("--workers=1", "--daemonize", prefix=without("prlimit64"), wait=False)
    assert "Operation not permitted" in refusal(server, 71)


def test_automatic_affinity_needs_to_be_told_the_cpus(daemon: StartDaemon) -> None:
    prefix = without("sched_getaffinity")
    server = daemon("--workers=1", "--cpu-affinity=auto", prefix=prefix, wait=False)
    assert refusal(server, 71) == "cpu_affinity: auto: the usable CPUs are unknown"


@pytest.mark.parametrize("mode", MODES)
def test_without_proc_it_serves(daemon: StartDaemon, mode: str) -> None:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("a place without /proc needs root and unshare(1)")
    hide = ["sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    serves(
        daemon(
            f"--mode={mode}", "--workers=2", "--reply",
            prefix=["unshare", "--mount", "--propagation=private", *hide],
        )
    )  # fmt: skip


# Few descriptors ----------------------------------------------------------------------------


def with_files(number: int) -> list[str]:
    """Return the prefix that allows so many descriptors."""
    return ["prlimit", f"--nofile={number}"]


@DETACH
@pytest.mark.parametrize("files", [8, 16, 32, 64])
@pytest.mark.parametrize("mode", MODES)
def test_too_few_descriptors_are_one_line_with_the_number_that_is_needed(
    daemon: StartDaemon, mode: str, files: int, detach: list[str]
) -> None:
    server = daemon(
        f"--mode={mode}", "--workers=40", "--bind=127.0.0.1:0", "--bind=127.0.0.2:0", *detach,
        prefix=with_files(files), wait=False,
    )  # fmt: skip
    number = needed(mode, workers=40, addresses=2)
    assert refusal(server, 71) == (
        f"{files} open files are too few: mode {mode} with workers = 40, addresses = 2 takes"
        f" {number} (ulimit -n, LimitNOFILE=)"
    )


@DETACH
@pytest.mark.parametrize(("workers", "addresses"), [(1, 1), (6, 3)])
@pytest.mark.parametrize("mode", MODES)
def test_with_the_number_that_is_needed_everything_can_be_done_and_with_one_less_nothing(
    daemon: StartDaemon, mode: str, workers: int, addresses: int, detach: list[str]
) -> None:
    number = needed(mode, workers=workers, addresses=addresses)
    binds = [f"--bind=127.0.0.{each + 1}:0" for each in range(addresses)]
    arguments = [f"--mode={mode}", f"--workers={workers}", "--reply", *binds, *detach]
    refused = daemon(*arguments, prefix=with_files(number - 1), wait=False)
    assert f" takes {number} " in refusal(refused, 71)

    server = begin(daemon, *arguments, prefix=with_files(number))
    for address in server.addresses:
        assert greet(address, "Alice") == "Hello, Alice\n"
    most = max(len([*Path(f"/proc/{pid}/fd").iterdir()]) for pid in [server.pid])
    asked = server.ctl("scale", str(workers + 1))
    assert asked.returncode == 1
    assert "as many as the limit of open files allows (max_files)" in asked.stderr
    server.signal(signal.SIGTTIN)
    server.wait_event("scale failed", count=2)
    serves(server)
    levels = {each["event"] for each in server.events() if each["level"] == "warning"}
    assert levels <= {"workers are root", "worker exited", "worker died"}, levels
    print(f"{mode}, {workers} workers, {addresses} addresses: {number} needed, {most} in use")


def test_a_setting_that_allows_too_few_is_the_configuration_s_fault(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    refused = daemon("--workers=40", "--max-files=64", wait=False)
    number = needed("inherit", workers=40, addresses=1)
    assert refusal(refused, 78).startswith("max_files: 64 is too few: mode inherit with workers")
    file = tmp_path / "greeterd.toml"
    file.write_text(f"workers = 2\nmax_files = {number - 1}\n")
    server = daemon("--config", str(file))
    before = server.worker_pids()
    file.write_text(f"workers = 40\nmax_files = {number - 1}\n")
    asked = server.ctl("reload")
    assert asked.returncode == 1
    assert f"max_files: {number - 1} is too few" in asked.stderr
    assert f"takes {number}" in asked.stderr
    assert server.worker_pids() == before


# The directory of the start -----------------------------------------------------------------


def inside(directory: Path) -> tuple[str, ...]:
    """Return the prefix of a shell that was led to a directory by this name."""
    return after(f"os.chdir({str(directory)!r}); os.environ['PWD'] = {str(directory)!r}")


def own_descriptors(pid: int) -> int:
    """Return how many descriptors the master has, but for those that come and go."""
    return len([each for each in proc.links(pid) if not each.startswith("socket:")])


@DETACH
def test_an_upgrade_does_without_a_start_directory_that_is_gone(
    daemon: StartDaemon, tmp_path: Path, detach: list[str]
) -> None:
    place = tmp_path / "release-1"
    place.mkdir()
    server = begin(daemon, "--workers=1", "--reply", *detach, prefix=inside(place))
    before = own_descriptors(server.pid)
    place.rmdir()
    serves_on(server, 3)
    place.mkdir()  # another one of the same name
    serves_on(server, 2)
    assert own_descriptors(server.pid) == before
    assert server.stop() == 0


def serves_on(server: Daemon, times: int) -> None:
    """Upgrade, and greet."""
    for _ in range(times):
        done = server.ctl("upgrade")
        assert done.returncode == 0, done.stderr
        assert greet(server.address, "Alice") == "Hello, Alice\n"
        assert server.ctl("reload").returncode == 0


@DETACH
@pytest.mark.parametrize("relative", ["config", "log_dir"])
def test_an_upgrade_that_needs_the_gone_directory_is_refused_by_its_name_and_leaks_nothing(
    daemon: StartDaemon, tmp_path: Path, relative: str, detach: list[str]
) -> None:
    place = tmp_path / "release-1"
    place.mkdir()
    (place / "greeterd.toml").write_text("workers = 1\nreply = true\n")
    if relative == "config":
        server = begin(daemon, "--config=greeterd.toml", *detach, prefix=inside(place))
    else:
        server = daemon("--log-dir=logs", *detach, prefix=inside(place), wait=False)
        server.log_dir = place / "logs"
        server.wait_event("ready")
        until(lambda: not detach or server.process.poll() == 0, what="its launcher has left")
    before = own_descriptors(server.pid)
    shutil.rmtree(place)
    for command in ["upgrade"] * 3 + ["reload"] * (relative == "config"):
        refused = server.ctl(command)
        assert refused.returncode == 1
        assert str(place) in refused.stderr, refused.stderr
        assert not place.exists(), "nobody makes it anew"
    assert own_descriptors(server.pid) == before
    assert server.ctl("ping").returncode == 0
    assert server.stop() == 0


def test_a_deployment_that_switches_a_link_is_found_by_reload_and_upgrade(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        release(tmp_path, number)
    current = tmp_path / "current"
    current.symlink_to("release-1")
    server = daemon("--config=greeterd.toml", command=["bin/greeterd"], prefix=inside(current))
    assert (tmp_path / "release-1/ran").exists()
    for number, command in ((2, "upgrade"), (3, "upgrade")):
        switch(current, number)
        shutil.rmtree(tmp_path / f"release-{number - 1}")
        done = server.ctl(command)
        assert done.returncode == 0, done.stderr
        assert len(server.worker_pids()) == number, "the new release's configuration"
        assert (tmp_path / f"release-{number}/ran").exists(), "by the new release's interpreter"
    assert server.stop() == 0


def release(directory: Path, number: int) -> None:
    """Make a release: an interpreter with packages, a program, and a configuration."""
    place = directory / f"release-{number}"
    (place / "bin").mkdir(parents=True)
    home = Path(sys.prefix)
    shutil.copy(home / "pyvenv.cfg", place)
    (place / "bin/python").symlink_to((home / "bin/python").resolve())
    (place / "lib").symlink_to(home / "lib")
    script = place / "bin/greeterd"
    script.write_text(
        f"#!{place}/bin/python\nimport sys\nfrom pathlib import Path\n"
        "Path(sys.executable).parents[1].joinpath('ran').touch()\n"
        "from greeterd.cli.greeterd import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    (place / "greeterd.toml").write_text(f"workers = {number}\n")


def switch(link: Path, number: int) -> None:
    """Let the link lead to another release, at one stroke."""
    new = link.with_name("new")
    new.symlink_to(f"release-{number}")
    new.rename(link)


# The configuration file ---------------------------------------------------------------------


def fifo(path: Path) -> None:
    """Make a FIFO, to which nobody writes."""
    os.mkfifo(path)


def directory(path: Path) -> None:
    """Make a directory."""
    path.mkdir()


def device(path: Path) -> None:
    """Make a link to a device that never ends."""
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    """Make a file that takes no room, and would take all memory."""
    with path.open("wb") as file:
        file.truncate(2**40)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (fifo, "not a regular file"),
        (directory, "not a regular file"),
        (device, "not a regular file"),
        (huge, "larger than 1048576 bytes"),
    ],
)
def test_a_configuration_that_is_no_file_of_settings_is_refused_at_once(
    daemon: StartDaemon, tmp_path: Path, make: object, reason: str
) -> None:
    assert callable(make)
    file = tmp_path / "greeterd.toml"
    make(file)
    refused = daemon("--config", str(file), wait=False)
    assert refusal(refused, 78) == f"file {file}: {reason}"
    file.rename(tmp_path / "bad")
    real = tmp_path / "real.toml"
    real.write_text("workers = 1\n")
    file.symlink_to(real)  # as a configuration often is
    server = daemon("--config", str(file))
    file.unlink()
    (tmp_path / "bad").rename(file)
    server.signal(signal.SIGHUP)
    assert server.wait_event("reload failed")["reason"] == f"file {file}: {reason}"
    assert server.ctl("ping").returncode == 0
    assert psutil.Process(server.pid).memory_info().rss < 2**28


def test_what_a_shell_passes_by_a_pipe_is_refused(daemon: StartDaemon) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    try:
        server = daemon(f"--config=/proc/self/fd/{reader}", pass_fds=[reader], wait=False)
        assert refusal(server, 78).endswith("not a regular file")
    finally:
        os.close(reader)
