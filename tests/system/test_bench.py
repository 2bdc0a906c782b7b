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
from msgspec.structs import replace

from greeterd.bench.analysis.paired import LOOKS
from greeterd.bench.analysis.rows import rows
from greeterd.bench.experiment import runner, store, trial
from greeterd.bench.experiment.outside import tree
from greeterd.bench.experiment.plan import Pin, Plan
from greeterd.bench.experiment.servers import DAEMON, Setup
from greeterd.bench.experiment.store import load_results
from greeterd.bench.model import Case, Comparison, Results, Trial
from tests.bench_results import ENVIRONMENT
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


def experiment(
    comparison: Comparison, place: Path, setup: Setup | None = None, **plan: Any
) -> Results:
    """Run an experiment of one comparison, of one pair unless it is said."""
    whole = Plan(**{"comparisons": [comparison], "warmup": 20, "pairs": 1, **plan})
    header = store.Header(environment=ENVIRONMENT, plan=whole)
    kept = store.create(place / "experiment.jsonl", header)
    try:
        runner.run(kept, setup or Setup(), lambda _: None)
    finally:
        kept.close()
    return kept.results


def run(case: Case, place: Path, daemon: tuple[str, ...] = DAEMON) -> Trial:
    (one,) = experiment(Comparison(a=case), place, Setup(daemon=daemon)).trials
    return one


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
def test_a_trial_is_measured_and_its_counts_agree(tmp_path: Path) -> None:
    done = run(SMALL, tmp_path)
    assert done.invalid == ""
    assert done.counts.client == done.counts.scoreboard == done.counts.log == 200
    assert sum(done.per_worker) == 200
    assert len(done.per_worker) == 2
    assert done.cpu_us > 0
    assert len(done.processes) == 3
    assert sum(one.cpu_us for one in done.processes) == pytest.approx(done.cpu_us)
    assert done.switches is not None
    assert done.switches > 0
    assert (done.cpu_user_us, done.cpu_system_us) == (None, None)  # of a few ticks
    assert done.wakeups > 0
    assert done.listener.sockets == 2
    assert done.listener.limit > 0
    assert done.load is not None
    assert done.load.latency.count == 200
    assert bool(done.rate) != bool(done.load.bottleneck)


@pytest.mark.usefixtures("directory")
def test_both_of_a_comparison_are_up_at_a_time_and_their_trials_are_pairs(tmp_path: Path) -> None:
    other = replace(SMALL, mode="inherit")
    found = experiment(Comparison(a=SMALL, b=other), tmp_path, pairs=3)
    assert [(one.pair, one.invalid) for one in found.trials] == [(n // 2, "") for n in range(6)]
    for at in range(0, 6, 2):
        assert {one.case.mode for one in found.trials[at : at + 2]} == {"inherit", "reuseport"}
    # One process of each for all its trials, and never one for both.
    pids = [
        {one.pid for trial in found.trials if trial.case == case for one in trial.processes}
        for case in (SMALL, other)
    ]
    assert [len(some) for some in pids] == [3, 3]
    assert pids[0].isdisjoint(pids[1])
    assert found.finished
    assert found.objections == []
    (row,) = rows(found)
    assert row.primary is not None
    assert row.primary.pairs == 3


@pytest.mark.usefixtures("directory")
def test_a_run_ends_when_it_is_decided_or_its_time_is_over(tmp_path: Path) -> None:
    small = replace(SMALL, greetings=20)
    comparison = Comparison(a=small, b=replace(small, mode="inherit"))
    decided = experiment(comparison, tmp_path, pairs=None, precision=9.0, max_time=600.0)
    assert len(decided.trials) == 2 * LOOKS[0]
    (tmp_path / "experiment.jsonl").unlink()
    over = experiment(comparison, tmp_path, pairs=None, precision=1e-9, max_time=1e-9)
    assert len(over.trials) == 2


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU")
@pytest.mark.usefixtures("directory")
def test_servers_and_clients_run_where_they_are_pinned() -> None:
    one, other, *_ = sorted(os.sched_getaffinity(0))
    pin = Pin(server=[one], client=[other])
    plan = Plan(comparisons=[Comparison(a=SMALL)], warmup=20, pin=pin)
    with trial.subject(SMALL, plan, Setup(cpus=pin.server)) as found:
        for pid in tree(found.server.pid):
            assert os.sched_getaffinity(pid) == {one}
        clients = [
            child.pid
            for child in psutil.Process().children()
            if "load.process" in " ".join(child.cmdline())
        ]
        assert clients
        assert all(os.sched_getaffinity(pid) == {other} for pid in clients)


@pytest.mark.parametrize("lines", ["lines[1:]", "lines + lines[:1]"])
@pytest.mark.usefixtures("directory")
def test_a_server_whose_log_is_not_what_it_counted_is_found(lines: str, tmp_path: Path) -> None:
    setup = Setup(daemon=stand_in(MISCOUNTING, lines=lines))
    found = experiment(Comparison(a=SMALL), tmp_path, setup)
    logged = 219 if lines == "lines[1:]" else 221
    (said,) = found.objections
    assert said.reason == f"220 greetings were logged, and {logged} at its end"


@pytest.mark.usefixtures("directory")
def test_a_daemon_that_dies_in_mid_trial_makes_it_invalid_with_its_last_words(
    tmp_path: Path,
) -> None:
    case = Case(mode="inherit", workers=2, arrival="constant", rate=500.0, greetings=5000)
    done = run(case, tmp_path, stand_in(DYING))
    assert done.invalid.startswith("greeterd ended with exit code 247: ")
    assert "the last words" in done.invalid


@pytest.mark.usefixtures("directory")
def test_a_server_that_has_failed_is_started_afresh_and_given_up_after_three_times(
    tmp_path: Path,
) -> None:
    found = experiment(Comparison(a=SMALL), tmp_path, Setup(daemon=("/bin/false",)), pairs=9)
    assert len(found.trials) == runner.FAILURES
    assert all("did not start" in one.invalid for one in found.trials)


def test_a_disk_that_is_full_makes_a_trial_invalid_at_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, True])  # before the warm-up, and once the load runs
    statvfs = os.statvfs

    def pretend(path: Path) -> object:
        return SimpleNamespace(f_blocks=9, f_bavail=0) if next(answers) else statvfs(path)

    monkeypatch.setattr(os, "statvfs", pretend)
    case = Case(mode="inherit", workers=2, arrival="constant", rate=100.0, greetings=5000)
    assert run(case, directory.parent).invalid == f"no space is left in {directory}"


@pytest.mark.usefixtures("directory")
def test_a_stopped_worker_costs_clients_without_rescue_and_the_counts_still_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greeterd.bench.experiment.plan.FAULT_TIMEOUT", 1.0)
    case = Case(
        mode="reuseport", workers=2, arrival="constant", rate=300.0, greetings=900,
        fault="stopped", rescue=False,
    )  # fmt: skip
    done = run(case, tmp_path)
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
        "--mode=inherit,reuseport", "--workers=2", "--greetings=200", "--pairs=4", "--warmup=20"
    ]  # fmt: skip
    results = directory.parent / "results.jsonl"
    kept: list[Any] = []
    for number, choice in ((signal.SIGTERM, "--results"), (signal.SIGQUIT, "--resume")):
        code, said = interrupted(number, f"{choice}={results}", *arguments)
        before, kept = kept, load_results(results).trials
        assert code == 130
        assert f"interrupted: {len(kept)} trials kept in {results}" in said
        assert f"greeter bench --resume {results}" in said
        assert len(before) < len(kept) < 8
        assert list(directory.iterdir()) == []
        assert marked(directory) == []
    other = bench("--resume", str(results), "--mode=inherit", cwd=directory)
    assert other.returncode == 2
    assert "holds another plan" in other.stderr
    done = bench("--resume", str(results), cwd=directory)
    assert done.returncode == 0, done.stderr
    trials = load_results(results).trials
    assert [one.order for one in trials] == list(range(len(trials)))
    assert {one.invalid for one in trials} == {""}
    assert trials[-1].pair == 3
    assert load_results(results).finished
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
            if re.match(r"greeter: \d+ %: pair \d:", line):
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
    done = bench("--dry-run", "--mode=reuseport", "--wait=rotate,epoll", "--pairs=2", cwd=directory)
    assert done.returncode == 0
    assert "1 comparison of 1 case" in done.stdout
    assert "left out 1 case: wait rotate" in done.stderr


@pytest.mark.usefixtures("directory")
def test_a_daemon_on_ipv6_is_measured(tmp_path: Path) -> None:
    (done,) = experiment(Comparison(a=SMALL), tmp_path, Setup("[::1]:0", commit="abc")).trials
    assert (done.invalid, done.commit) == ("", "abc")


def test_a_command_that_is_no_daemon_is_told(directory: Path) -> None:
    true = bench("--greeterd", "/bin/true", cwd=directory)
    assert true.returncode == 70
    assert "/bin/true --version: it is no greeterd: true" in true.stderr
    done = bench("--greeterd", shlex.join([sys.executable, "-c", "exit(3)"]), cwd=directory)
    assert done.returncode == 70
    assert "--version: it said nothing" in done.stderr
