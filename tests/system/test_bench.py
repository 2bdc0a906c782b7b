"""`greeter bench` with tiny cases: it counts, can be interrupted, and notices what is wrong."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from greeterd.bench.experiment import trial
from greeterd.bench.experiment.plan import Plan, Visit
from greeterd.bench.experiment.servers import DAEMON, Setup
from greeterd.bench.experiment.store import load_results
from greeterd.bench.model import Case, Trial
from tests.support import until
from tests.system.harness import clean_environment, program

MARK = "LC_TEST_BENCH_MARK"  # workers of root keep no other names
SMALL = Case(mode="reuseport", workers=2, concurrency=4, greetings=200)

# Daemons that are not what they should be: each runs the real one with the arguments that it gets.
MISCOUNTING = """
import pathlib, subprocess, sys
code = subprocess.call([{daemon}, *sys.argv[1:]])
logs = next(word.partition("=")[2] for word in sys.argv if word.startswith("--log-dir"))
log = next(path for path in sorted(pathlib.Path(logs).glob("worker-*.log")) if path.stat().st_size)
lines = log.read_text().splitlines(keepends=True)
log.write_text("".join({lines}))
sys.exit(code)
"""
DYING = """
import pathlib, select, subprocess, sys
daemon = subprocess.Popen([{daemon}, *sys.argv[1:]])
logs = next(word.partition("=")[2] for word in sys.argv if word.startswith("--log-dir"))
while sum(path.stat().st_size for path in pathlib.Path(logs).glob("worker-*.log")) < 20_000:
    select.select([], [], [], 0.005)
print("the last words", file=sys.stderr, flush=True)
daemon.kill()
sys.exit(daemon.wait())
"""


def stand_in(source: str, **parts: str) -> tuple[str, ...]:
    """Return the command of a daemon that is not what it should be."""
    daemon = ", ".join(map(repr, DAEMON))
    return (sys.executable, "-c", source.format(daemon=daemon, **parts))


def run(case: Case, daemon: tuple[str, ...] = DAEMON) -> Trial:
    plan = Plan(cases=[case], warmup=20)
    return trial.run(Visit(case, 0, 0), plan, Setup(daemon=daemon))


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return where temporary files are made, and look that all are gone at the end."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv(MARK, str(place))
    yield place
    assert list(place.iterdir()) == []
    until(lambda: not marked(place), what="the end of all processes")


def marked(place: Path) -> list[int]:
    """Return the processes that were started for this test."""
    found = []
    for one in psutil.process_iter():
        try:
            if one.pid != os.getpid() and one.environ().get(MARK) == str(place):
                found.append(one.pid)
        except psutil.Error:
            pass
    return found


def bench(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("greeter"), "bench", *arguments],
        cwd=cwd, env=clean_environment({}), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.usefixtures("directory")
def test_a_trial_is_measured_and_its_counts_agree() -> None:
    done = run(SMALL)
    assert done.invalid == ""
    assert done.counts.client == done.counts.scoreboard == done.counts.log == 220
    assert sum(done.per_worker) == 200
    assert len(done.per_worker) == 2
    assert done.rate > 0
    assert done.cpu_us > 0
    assert done.switches is not None
    assert done.switches > 0
    assert (done.cpu_user_us, done.cpu_system_us) == (None, None)  # of a few ticks
    assert done.wakeups > 0
    assert done.listener.sockets == 2
    assert done.listener.limit > 0
    assert done.load is not None
    assert done.load.latency.count == 200


@pytest.mark.parametrize("lines", ["lines[1:]", "lines + lines[:1]"])
@pytest.mark.usefixtures("directory")
def test_a_server_whose_log_is_not_what_it_counted_is_found(lines: str) -> None:
    done = run(SMALL, stand_in(MISCOUNTING, lines=lines))
    logged = 219 if lines == "lines[1:]" else 221
    assert done.invalid == f"the counts disagree: client 220, scoreboard 220, log {logged}"


@pytest.mark.usefixtures("directory")
def test_a_daemon_that_dies_in_mid_trial_makes_it_invalid_with_its_last_words() -> None:
    case = Case(mode="inherit", workers=2, arrival="constant", rate=500.0, greetings=5000)
    done = run(case, stand_in(DYING))
    assert done.invalid.startswith("greeterd ended with exit code 247: ")
    assert "the last words" in done.invalid


def test_a_disk_that_is_full_makes_a_trial_invalid_at_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, True])  # before the warm-up, and once the load runs
    statvfs = os.statvfs

    def pretend(path: Path) -> object:
        return SimpleNamespace(f_blocks=9, f_bavail=0) if next(answers) else statvfs(path)

    monkeypatch.setattr(os, "statvfs", pretend)
    case = Case(mode="inherit", workers=2, arrival="constant", rate=100.0, greetings=5000)
    assert run(case).invalid == f"no space is left in {directory}"


@pytest.mark.usefixtures("directory")
def test_a_stopped_worker_costs_clients_without_rescue_and_the_counts_still_agree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("greeterd.bench.experiment.plan.FAULT_TIMEOUT", 1.0)
    case = Case(
        mode="reuseport", workers=2, arrival="constant", rate=300.0, greetings=900,
        fault="stopped", rescue=False,
    )  # fmt: skip
    done = run(case)
    assert done.invalid == ""
    assert done.lost == done.counts.uncertain > 50
    assert done.load is not None
    assert done.load.errors == {"timeout": done.lost}
    assert done.faults == 1
    # What it had counted and not closed when it was stopped, its clients do not know of.
    assert done.load.ok <= sum(done.per_worker) <= done.load.ok + done.lost
    assert done.per_worker[0] < 0.3 * done.per_worker[1]
    assert done.load.latency.missing == done.lost


def test_an_interrupted_experiment_keeps_its_trials_and_goes_on(directory: Path) -> None:
    arguments = [
        "--mode=inherit,reuseport", "--workers=2", "--greetings=200", "--trials=2", "--warmup=20"
    ]  # fmt: skip
    results = directory.parent / "results.jsonl"
    kept: list[Any] = []
    for number, choice in ((signal.SIGTERM, "--results"), (signal.SIGQUIT, "--resume")):
        code, said = interrupted(number, f"{choice}={results}", *arguments)
        before, kept = kept, load_results(results).trials
        assert code == 130
        assert f"{len(kept)} of 4 trials are kept in {results}" in said
        assert f"greeter bench --resume {results}" in said
        assert len(before) < len(kept) < 4
        assert list(directory.iterdir()) == []
        assert marked(directory) == []
    other = bench("--resume", str(results), "--mode=inherit", cwd=directory)
    assert other.returncode == 2
    assert "holds another plan" in other.stderr
    done = bench("--resume", str(results), cwd=directory)
    assert done.returncode == 0, done.stderr
    trials = load_results(results).trials
    assert sorted(one.order for one in trials) == [0, 1, 2, 3]
    assert [one.invalid for one in trials] == [""] * 4
    assert "reuseport" in done.stdout


@pytest.mark.parametrize("fault", ["none", "stopped"])
def test_a_killed_experiment_leaves_nothing_running(directory: Path, fault: str) -> None:
    arguments = [
        "--mode=inherit", "--workers=2", "--arrival=constant", "--rate=100", f"--fault={fault}"
    ]  # fmt: skip
    with subprocess.Popen(
        [program("greeter"), "bench", *arguments, f"--results={directory.parent / 'results'}"],
        env=clean_environment({}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        until(lambda: under_way(directory, fault), timeout=60.0, what="a load on a daemon")
        process.kill()
    until(lambda: not marked(directory), timeout=10, what="the end of all processes")
    for left in directory.iterdir():
        assert left.name.startswith("greeter-bench-")
        shutil.rmtree(left)


def under_way(place: Path, fault: str) -> bool:
    """Tell whether greetings come, and a worker is stopped if one is to be."""
    logged = any(log.stat().st_size > 60_000 for log in place.glob("*/logs/worker-*.log"))
    return logged and (fault == "none" or any(map(is_stopped, marked(place))))


def is_stopped(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def interrupted(number: int, *arguments: str) -> tuple[int, str]:
    """Run an experiment up to its next trial, send a signal while another runs; code, messages."""
    with subprocess.Popen(
        [program("greeter"), "bench", *arguments],
        env=clean_environment({}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if re.match(r"greeter: \d of 4:", line):
                process.send_signal(number)
        return process.wait(30), "".join(said)


def test_what_cannot_be_written_is_found_before_the_run(directory: Path) -> None:
    results = directory.parent / "results.jsonl"
    for flags in (("--html=/proc/x", f"--results={results}"), ("--results=/proc/x",)):
        done = bench(*flags, cwd=directory)
        assert done.returncode == 74
        assert done.stderr == "greeter: /proc/x: No such file or directory\n"
        assert not results.exists()


def test_a_port_that_is_taken_is_found_before_the_run(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = bench("--bind", address, cwd=directory)
    assert done.returncode == 69
    assert done.stderr == f"greeter: --bind {address}: Address already in use\n"


def test_a_dry_run_prints_the_plan_and_runs_nothing(directory: Path) -> None:
    done = bench(
        "--dry-run", "--mode=reuseport", "--wait=rotate,epoll", "--trials=2", cwd=directory
    )
    assert done.returncode == 0
    assert "1 case, 2 times each: 2 trials" in done.stdout
    assert "left out 1 case: wait rotate" in done.stderr


@pytest.mark.usefixtures("directory")
def test_a_daemon_on_ipv6_is_measured() -> None:
    plan = Plan(cases=[SMALL], warmup=20)
    done = trial.run(Visit(SMALL, 0, 0), plan, Setup("[::1]:0", commit="abc"))
    assert (done.invalid, done.commit) == ("", "abc")


def test_a_command_that_is_no_daemon_is_told(directory: Path) -> None:
    true = bench("--greeterd", "/bin/true", cwd=directory)
    assert true.returncode == 70
    assert "/bin/true --version: it is no greeterd: true" in true.stderr
    done = bench("--greeterd", shlex.join([sys.executable, "-c", "exit(3)"]), cwd=directory)
    assert done.returncode == 70
    assert "--version: it said nothing" in done.stderr
