"""Sockets that a real systemd opens: they start the daemon, and it leaves them as they were."""

import pytest

from tests.support import until
from tests.system.conftest import StartUnit
from tests.system.unit import ADDRESS, Unit

INHERIT, REUSEPORT = "greeterd.socket", "greeterd-reuseport.socket"
BOTH = pytest.mark.parametrize(("mode", "socket"), [("inherit", INHERIT), ("reuseport", REUSEPORT)])
CLIENTS = 300


def config(mode: str, more: str = "", *, graceful_timeout: float = 0.5) -> str:
    # The addresses are the sockets', so this one is not used.
    bind = 'bind = ["127.0.0.1:1"]'
    times = f"graceful_timeout = {graceful_timeout}\ndrain_grace = 0.05"
    return f'mode = "{mode}"\nreply = true\n{times}\n{bind}\n{more}\n'


def refusal(server: Unit, *words: str) -> str:
    """Start the service in vain; return its last words, which are the reason."""
    server.ctl("start", *words, check=False)
    done = server.ctl("start", "greeterd", check=False)
    assert done.returncode != 0
    assert server.show("ExecMainStatus") == "78"
    return server.journal()


def rewrite(server: Unit, socket: str, *changes: tuple[str, str]) -> None:
    """Change the text of an installed socket unit."""
    path = server.container.path(f"/etc/systemd/system/{socket}")
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    server.ctl("daemon-reload")


@BOTH
def test_the_first_client_starts_the_daemon(unit: StartUnit, mode: str, socket: str) -> None:
    server = unit(config(mode), units=[socket])
    server.start(socket)
    assert server.show("ActiveState") == "inactive"
    server.greet()
    until(lambda: server.show("ActiveState") == "active", what="the start")
    status = server.status()
    assert (status["addresses"], status["passed"]) == ([ADDRESS], True)
    sockets = {"inherit": 1, "reuseport": 2}[mode]
    [record] = server.events("sockets passed")
    assert (record["addresses"], record["sockets"]) == ([ADDRESS], sockets)
    if mode == "reuseport":
        assert sorted(server.workers()) == [1, 2], "one for each socket"
    assert server.stored() == 0, "systemd has them anyway"
    assert "passed by the service manager" in server.greeterctl("status").stdout


@pytest.mark.parametrize(
    ("mode", "socket"), [("inherit", INHERIT), ("reuseport", REUSEPORT), ("handoff", INHERIT)]
)
def test_who_waits_outlives_a_restart_and_a_kill(unit: StartUnit, mode: str, socket: str) -> None:
    server = unit(config(mode, "workers = 2"), units=[socket])
    server.start(socket)
    server.greet()
    server.start()  # which joins the start that the client has begun
    for how in ("restart", "kill --kill-whom=main --signal=KILL"):
        with server.queue(CLIENTS) as load:
            server.ctl(*how.split(), "greeterd")
            assert load.finish().counts == {"ok": CLIENTS}
        assert server.show("ActiveState", socket) == "active"


@BOTH
def test_a_stopped_daemon_is_started_again_by_the_next_client(
    unit: StartUnit, mode: str, socket: str
) -> None:
    server = unit(config(mode, "workers = 2", graceful_timeout=10.0), units=[socket])
    server.start(socket)
    with server.load(concurrency=4, timeout=20.0, reply=True) as load:
        load.wait_going()
        for _ in range(2):
            server.ctl("stop", "greeterd")
        assert not load.stop().lost
    server.ctl("stop", "greeterd")
    assert server.show("ActiveState", socket) == "active"
    server.greet(4)
    until(lambda: server.show("ActiveState") == "active", what="the start")


def test_a_unix_socket_of_a_unit_keeps_its_file(unit: StartUnit) -> None:
    server = unit(config("inherit"), units=[INHERIT])
    path = "/run/greeterd.sock"
    rewrite(server, INHERIT, (f"ListenStream={ADDRESS}", f"ListenStream={path}"))
    server.start(INHERIT)
    server.start()
    assert server.status()["addresses"] == [f"unix:{path}"]
    server.ctl("stop", "greeterd")
    assert server.container.path(path).is_socket()


def test_there_are_no_more_workers_than_sockets_and_fewer_get_all_clients(unit: StartUnit) -> None:
    server = unit(config("reuseport"), units=[REUSEPORT])
    server.start(REUSEPORT)
    server.start()
    done = server.greeterctl("scale", "3")
    assert done.returncode == 1
    assert "as many as the service manager has passed sockets for" in done.stderr
    assert server.greeterctl("scale", "1").returncode == 0
    server.greet(40)
    assert server.status()["counters"]["1"]["greetings"] == 40
    assert server.greeterctl("upgrade").returncode == 0
    server.greet(40)
    assert server.status()["counters"]["2"]["greetings"] > 0, "as many as are configured again"
    assert server.greeterctl("reload").returncode == 0, "though bind is another"
    server.configure(config("reuseport", "workers = 1"))
    assert "2 sockets" in server.greeterctl("reload").stderr


def test_sockets_that_no_worker_served_get_clients_when_the_daemon_is_gone(unit: StartUnit) -> None:
    server = unit(config("reuseport"), units=[REUSEPORT])
    server.start(REUSEPORT)
    server.start()
    assert server.greeterctl("scale", "1").returncode == 0
    server.ctl("stop", "greeterd")
    server.greet(40)
    slots = server.status()["counters"].values()
    assert all(one["greetings"] for one in slots), "by the kernel's hash again"


@pytest.mark.parametrize(
    ("mode", "socket", "change", "reason"),
    [
        ("inherit", REUSEPORT, ("", ""), 'mode = "inherit" has one'),
        ("reuseport", INHERIT, ("", ""), "needs ReusePort=yes in the socket unit"),
        ("inherit", INHERIT, ("ListenStream", "ListenDatagram"), "is a datagram socket"),
        ("inherit", INHERIT, (ADDRESS, "@abstract"), "must be absolute"),
        (
            "reuseport",
            REUSEPORT,
            (f"ListenStream={ADDRESS}\nBacklog", "ListenStream=/run/g\nBacklog"),
            "takes no unix sockets",
        ),
        (
            "reuseport",
            REUSEPORT,
            ("Backlog", "ListenStream=127.0.0.1:12346\nBacklog"),
            "there are 2 for 127.0.0.1:12345, 1 for 127.0.0.1:12346",
        ),
        ('reuseport"\nworkers = 4 #', REUSEPORT, ("", ""), "has passed 2 sockets"),
    ],
)
def test_sockets_that_do_not_fit_are_explained(
    unit: StartUnit, mode: str, socket: str, change: tuple[str, str], reason: str
) -> None:
    server = unit(config(mode), units=[socket])
    rewrite(server, socket, change)
    assert reason in refusal(server, socket)
