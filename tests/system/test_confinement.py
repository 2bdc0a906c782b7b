"""What a worker may do, as the kernel tells it: groups, privileges, files, core dumps, CPUs."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.system.books import worker_of
from tests.system.clients import greet
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to have groups to leave")
MODES = pytest.mark.parametrize("mode", ["inherit", "reuseport"])
CPUS = sorted(os.sched_getaffinity(0))
WITH_GROUPS = ("setpriv", "--groups", "4,5")


def told(pid: int, name: str) -> str:
    """Return a line of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (value,) = (line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))
    return value


def limit(pid: int, name: str) -> tuple[str, str]:
    """Return the soft and the hard limit of /proc/PID/limits."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"Max {name} "))
    soft, hard, *_ = line.removeprefix(f"Max {name} ").split()
    return soft, hard


@needs_root
@MODES
@pytest.mark.parametrize("user", [None, "nobody"])
def test_workers_have_no_supplementary_groups_and_gain_no_privileges(
    daemon: StartDaemon, mode: str, user: str | None
) -> None:
    become = ["--user", user] if user else []
    server = daemon("--mode", mode, "--workers", "2", *become, prefix=WITH_GROUPS)
    assert told(server.pid, "Groups") == "4 5"
    pids = server.worker_pids()
    assert [told(pid, "Groups") for pid in pids] == ["", ""]
    assert [told(pid, "NoNewPrivs") for pid in pids] == ["1", "1"]
    greet(server.address, "Alice")


@MODES
def test_nobody_leaves_a_core_file_and_all_may_open_as_many_files_as_the_hard_limit(
    daemon: StartDaemon, mode: str
) -> None:
    server = daemon(
        "--mode", mode, "--workers", "2",
        prefix=("prlimit", "--core=unlimited", "--nofile=100:300"),
    )  # fmt: skip
    for pid in [server.pid, *server.worker_pids()]:
        assert limit(pid, "core file size")[0] == "0"
        assert limit(pid, "open files") == ("300", "300")


def test_core_files_and_a_number_of_files_are_allowed_by_a_reload(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    file = tmp_path / "greeterd.toml"
    file.write_text("workers = 2\nmax_files = 100\n")
    prefix = ("prlimit", "--core=1000:1000", "--nofile=100:300")
    server = daemon("--config", str(file), prefix=prefix)
    file.write_text("workers = 2\nmax_files = 200\ncore_dumps = true\n")
    assert server.ctl("reload").returncode == 0
    pids = [one["pid"] for one in server.status()["workers"] if not one["leaving"]]
    for pid in [server.pid, *pids]:
        assert limit(pid, "core file size") == ("1000", "1000")
        assert limit(pid, "open files") == ("200", "300")


def test_more_files_than_may_be_had_are_refused_at_the_start_and_by_a_reload(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    reason = "max_files: 2147483647 is above the hard limit of"
    failed = daemon("--max-files", "2147483647", wait=False)
    assert failed.wait() == 78
    assert reason in failed.log_text()
    file = tmp_path / "greeterd.toml"
    file.write_text("workers = 1\n")
    server = daemon("--config", str(file))
    before = server.worker_pids()
    file.write_text("workers = 1\nmax_files = 2147483647\n")
    asked = server.ctl("reload")
    assert (asked.returncode, reason in asked.stderr) == (1, True)
    assert server.worker_pids() == before


def pinned(server: Daemon, slots: int) -> list[str]:
    """Return the CPUs that the worker of each slot may run on."""
    return [told(worker_of(server, slot), "Cpus_allowed_list") for slot in range(1, slots + 1)]


@MODES
def test_workers_are_pinned_by_turns_and_let_go_by_a_reload(
    daemon: StartDaemon, tmp_path: Path, mode: str
) -> None:
    file = tmp_path / "greeterd.toml"

    def configure(**settings: object) -> None:
        usual = {"mode": mode, "workers": 3}
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in {**usual, **settings}.items()]
        file.write_text("".join(lines))

    configure(cpu_affinity="auto")
    server = daemon("--config", str(file))
    everywhere = told(server.pid, "Cpus_allowed_list")
    turns = [str(CPUS[slot % len(CPUS)]) for slot in range(4)]
    assert pinned(server, 3) == turns[:3]
    server.signal(signal.SIGTTIN)
    server.wait_event("scale done")
    assert pinned(server, 4) == turns
    configure(cpu_affinity=str(CPUS[-1]))
    assert server.ctl("reload").returncode == 0
    assert pinned(server, 3) == [str(CPUS[-1])] * 3
    configure()
    assert server.ctl("reload").returncode == 0
    assert pinned(server, 3) == [everywhere] * 3


def test_a_cpu_that_is_not_there_is_refused_at_the_start(daemon: StartDaemon) -> None:
    failed = daemon("--cpu-affinity", "8191", wait=False)
    assert failed.wait() == 78
    assert "CPU 8191 cannot be used by this process" in failed.log_text()
