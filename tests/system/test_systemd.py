"""The daemon under a real systemd: start, stop, reload, restart, kill, upgrade, watchdog."""

import re

import pytest

from tests.support import until
from tests.system.conftest import StartUnit
from tests.system.unit import ADDRESS, UNITS

BOTH = pytest.mark.parametrize("mode", ["inherit", "reuseport", "handoff"])
CLIENTS = 300


def config(mode: str, more: str = "", *, graceful_timeout: float = 0.5) -> str:
    times = f"graceful_timeout = {graceful_timeout}\ndrain_grace = 0.05"
    return f'mode = "{mode}"\nworkers = 2\nreply = true\n{times}\n{more}\n'


@pytest.mark.shows("service a start")
@BOTH
def test_start_returns_when_all_workers_accept_and_stop_ends_all(
    unit: StartUnit, mode: str
) -> None:
    server = unit(config(mode))
    server.start()
    assert len(server.workers()) == 2
    assert server.show("StatusText").startswith("ready: 2 of 2 workers ready, 0 greetings")
    server.greet(20)
    pids = [server.master, *server.workers().values()]
    server.ctl("stop", "greeterd")
    assert server.show("Result") == "success"
    assert server.show("ExecMainStatus") == "0"
    assert not [pid for pid in pids if server.lives(pid)]
    assert len(server.greetings()) == 20


@pytest.mark.shows("service a restart")
@BOTH
def test_restart_costs_no_client_that_waits(unit: StartUnit, mode: str) -> None:
    server = unit(config(mode))
    server.start()
    assert server.stored() == (3 if mode == "reuseport" else 1)
    with server.queue(CLIENTS) as load:
        server.ctl("restart", "greeterd")
        assert load.finish().counts == {"ok": CLIENTS}
    [restored] = server.events("listeners restored")
    assert (restored["queued"], restored["addresses"]) == (CLIENTS, [ADDRESS])
    server.greet()


@pytest.mark.shows("service a restart")
@BOTH
def test_a_killed_master_costs_no_client_that_waits(unit: StartUnit, mode: str) -> None:
    server = unit(config(mode))
    server.start()
    with server.queue(CLIENTS) as load:
        old = [server.master, *server.workers().values()]
        server.signal("KILL", old[0])
        assert load.finish().counts == {"ok": CLIENTS}
    assert server.show("NRestarts") == "1"
    assert not [pid for pid in old if server.lives(pid)]
    server.greet()


@BOTH
def test_restart_fails_no_client_of_a_load(unit: StartUnit, mode: str) -> None:
    server = unit(config(mode, graceful_timeout=10.0))
    server.start()
    with server.load(concurrency=8, timeout=20.0, reply=True) as load:
        load.wait_going()
        server.ctl("restart", "greeterd")
        result = load.stop()
    assert not result.lost
    assert result.counts["ok"] == len(server.greetings())


def test_what_does_not_fit_any_more_leaves_the_store(unit: StartUnit) -> None:
    server = unit(config("inherit"))
    server.start()
    server.signal("KILL", *server.workers().values())
    server.configure(config("reuseport"))
    server.ctl("restart", "greeterd")
    [dropped] = server.events("stored descriptor dropped")
    assert dropped["reason"] == "the mode or the addresses are others now"
    assert server.stored() == 3
    server.configure(config("reuseport", 'bind = ["127.0.0.1:12345", "[::1]:12345"]'))
    server.ctl("restart", "greeterd")
    assert server.stored() == 6
    server.greet()


def test_slots_that_are_too_many_after_a_restart_serve_who_waits_there(unit: StartUnit) -> None:
    server = unit(config("reuseport").replace("workers = 2", "workers = 4"))
    server.start()
    with server.queue(CLIENTS) as load:
        server.configure(config("reuseport"))
        server.ctl("restart", "greeterd")
        assert load.finish().counts == {"ok": CLIENTS}
    until(lambda: sorted(server.workers()) == [1, 2], what="two workers")
    until(lambda: server.stored() == 3, what="the listeners of two workers")
    server.greet(20)


def test_the_store_keeps_step_with_the_slots(unit: StartUnit) -> None:
    server = unit(config("reuseport", "allow_exit = true").replace("workers = 2", "workers = 4"))
    server.start()
    server.say("exit")
    until(lambda: server.stored() == 4, what="the end of the listener that retired")
    assert server.greeterctl("scale", "5").returncode == 0
    assert server.stored() == 6
    assert server.greeterctl("scale", "3").returncode == 0
    assert server.stored() == 4
    kept = set(server.workers())
    server.signal("KILL", server.master)
    until(lambda: server.show("NRestarts") == "1", what="the restart")
    until(lambda: server.show("ActiveState") == "active", what="the new master")
    indexes = {}
    for name in server.passed():
        if match := re.fullmatch(r"escrow/slot-(\d)-index-(\d)/127.0.0.1%3A12345", name):
            indexes[int(match[1])] = int(match[2])
    assert set(indexes) == kept
    assert sorted(indexes.values()) == [0, 1, 2]
    server.greet()


@pytest.mark.shows("service a reload")
def test_reload_returns_when_the_new_workers_serve(unit: StartUnit) -> None:
    server = unit(config("inherit"))
    server.start()
    old = server.workers()
    server.configure(config("inherit").replace("workers = 2", "workers = 3"))
    server.ctl("reload", "greeterd")
    assert sorted(server.workers()) == [1, 2, 3]
    assert not {*old.values()} & {*server.workers().values()}
    assert server.show("ActiveState") == "active"
    assert server.show("StatusText").startswith("ready: 3 of 3 workers ready")


@pytest.mark.shows("service a reload")
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("max_name_bytes = 0", "key max_name_bytes: must be a whole number from 1 to 1048576"),
        ("backlog = 10", "only a restart changes backlog"),
    ],
)
def test_a_reload_that_is_refused_fails_and_the_old_workers_serve(
    unit: StartUnit, line: str, reason: str
) -> None:
    server = unit(config("inherit"))
    server.start()
    old = server.workers()
    server.configure(config("inherit", line))
    done = server.ctl("reload", "greeterd", check=False)
    assert done.returncode != 0
    assert reason in server.journal()
    until(lambda: reason in server.show("StatusText"), what="the reason in the status")
    assert server.show("StatusText").startswith("ready: 2 of 2 workers ready")
    assert server.show("ActiveState") == "active"
    assert server.workers() == old
    server.greet()


@pytest.mark.shows("service a master that hangs")
def test_a_hung_master_is_restarted_by_the_watchdog(unit: StartUnit) -> None:
    server = unit(config("inherit"), drop_in="WatchdogSec=2")
    server.start()
    pids = [server.master, *server.workers().values()]
    until(lambda: server.show("WatchdogTimestampMonotonic") != "0", what="a first ping")
    server.signal("STOP", pids[0])
    until(lambda: server.show("NRestarts") == "1", timeout=15, what="the restart")
    until(lambda: server.show("ActiveState") == "active", what="the new master")
    assert not [pid for pid in pids if server.lives(pid)]
    assert "Watchdog timeout" in server.container.run("journalctl", "--no-pager").stdout
    server.greet()


def test_the_watchdog_is_content_with_a_daemon_that_is_well(unit: StartUnit) -> None:
    server = unit(config("reuseport"), drop_in="WatchdogSec=3")
    server.start()
    before = server.show("WatchdogTimestampMonotonic")
    server.ctl("reload", "greeterd")
    until(
        lambda: int(server.show("WatchdogTimestampMonotonic")) > int(before) + 7_500_000,
        what="pings for more than two periods",
        timeout=30.0,
    )
    assert server.show("NRestarts") == "0"


@BOTH
def test_an_upgrade_is_no_restart(unit: StartUnit, mode: str) -> None:
    server = unit(config(mode, graceful_timeout=10.0))
    server.start()
    master, old = server.master, server.workers()
    with server.load(concurrency=4, reply=True) as load:
        load.wait_going()
        assert server.greeterctl("upgrade").returncode == 0
        server.ctl("kill", "--kill-whom=main", "--signal=USR2", "greeterd")
        until(lambda: len(server.events("upgrade done")) == 2, timeout=20, what="both upgrades")
        result = load.stop()
    assert not result.lost
    assert (server.master, server.show("NRestarts")) == (master, "0")
    assert not {*old.values()} & {*server.workers().values()}
    assert server.show("ActiveState") == "active"
    assert server.stored() == (3 if mode == "reuseport" else 1)
    server.ctl("restart", "greeterd")
    assert server.events("listeners restored"), "the store has outlived the upgrades"


def test_a_long_drain_gets_the_time_that_it_needs(unit: StartUnit) -> None:
    server = unit(config("inherit", graceful_timeout=4.0), drop_in="TimeoutStopSec=1")
    server.start()
    server.signal("STOP", *server.workers().values())
    server.ctl("stop", "greeterd")
    assert server.show("Result") == "success", "systemd would have killed it after a second"


def test_the_drop_in_for_pinned_workers_is_enough(unit: StartUnit) -> None:
    head = (UNITS / "greeterd.service").read_text().partition("[Unit]")[0]
    [line] = re.findall(r"^#   cpu_affinity +(\S+)$", head, re.MULTILINE)
    server = unit(config("inherit", 'cpu_affinity = "auto"'), drop_in=line)
    server.start()
    server.greet()
