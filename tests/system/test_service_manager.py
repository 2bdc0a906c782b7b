"""The daemon and a service manager that the test plays: no systemd is needed, and no root."""

import array
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from greeterd.master.systemd.fdstore import Stored, label_of
from tests.support import until
from tests.system.conftest import StartDaemon
from tests.system.harness import Daemon

IP_MINTTL = 21  # linux/in.h
ADDRESS = "127.0.0.1:0"
PASS_AS_3 = 'fd=$0; export LISTEN_PID=$$; exec "$@" 3<&$fd {fd}<&-'


class ServiceManager:
    """Hears what a daemon tells, and keeps the descriptors that it is given."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.setblocking(False)
        self.environment = {"NOTIFY_SOCKET": str(path)}
        self.store: dict[str, int] = {}
        self._messages: list[dict[str, str]] = []

    def messages(self) -> list[dict[str, str]]:
        """Return all messages so far, as assignments."""
        while True:
            try:
                data, rights, _, _ = self.sock.recvmsg(65536, socket.CMSG_SPACE(64))
            except BlockingIOError:
                return self._messages
            pairs = (line.partition("=") for line in data.decode().splitlines())
            message = {name: value for name, _, value in pairs}
            self._messages.append(message)
            for _, _, raw in rights:
                [fd] = array.array("i", raw)
                self.store[message["FDNAME"]] = fd

    def told(self, *names: str) -> list[str]:
        """Return which of these were told, in their order."""
        return [name for message in self.messages() for name in message if name in names]

    def close(self) -> None:
        """Forget all of it."""
        self.sock.close()
        for fd in self.store.values():
            os.close(fd)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    found = ServiceManager(tmp_path / "notify")
    yield found
    found.close()


def start_with(daemon: StartDaemon, name: str, fd: int, *arguments: str) -> Daemon:
    """Start a daemon to which one descriptor is passed."""
    return daemon(
        *arguments,
        prefix=("bash", "-c", PASS_AS_3, str(fd)),
        pass_fds=[fd],
        environment={"LISTEN_FDS": "1", "LISTEN_FDNAMES": name},
    )


PHASES = ("READY", "RELOADING", "STOPPING")


def test_what_systemd_253_waits_for_at_a_reload(
    daemon: StartDaemon, manager: ServiceManager, tmp_path: Path
) -> None:
    file = tmp_path / "greeterd.toml"
    file.write_text("workers = 2\n")
    server = daemon("--config", str(file), environment=manager.environment)
    until(lambda: manager.told(*PHASES) == ["READY"], what="READY=1")
    asked_usec = time.monotonic_ns() // 1000
    server.signal(signal.SIGHUP)
    until(lambda: manager.told(*PHASES) == ["READY", "RELOADING", "READY"], what="a reload")
    server.wait_event("reload done")
    [began_usec] = [int(one["MONOTONIC_USEC"]) for one in manager.messages() if "RELOADING" in one]
    assert asked_usec <= began_usec <= time.monotonic_ns() // 1000

    file.write_text("workers = 0\n")
    server.signal(signal.SIGHUP)
    until(lambda: manager.told(*PHASES)[3:] == ["RELOADING", "READY"], what="a refused reload")
    until(lambda: "reload failed: " in manager.messages()[-1].get("STATUS", ""))

    assert server.stop() == 0
    assert manager.told(*PHASES)[5:] == ["STOPPING"]


def test_an_upgrade_is_a_reload_that_names_the_process(
    daemon: StartDaemon, manager: ServiceManager
) -> None:
    server = daemon("--workers", "2", environment=manager.environment)
    server.signal(signal.SIGUSR2)
    # Looked at all the while: the daemon does not wait for a service manager that does not read.
    phases = ["READY", "RELOADING", "RELOADING", "READY"]
    until(lambda: manager.told(*PHASES) == phases, timeout=20.0, what="an upgrade")
    server.wait_event("upgrade done")
    until(lambda: manager.messages()[-1].get("STATUS", "").startswith("ready"), timeout=20.0)
    assert [one["MAINPID"] for one in manager.messages() if "MAINPID" in one] == [str(server.pid)]


def test_the_watchdog_is_not_fed_while_most_workers_hang(
    daemon: StartDaemon, manager: ServiceManager
) -> None:
    period = {"WATCHDOG_USEC": "400000"}
    server = daemon(
        "--workers", "2", "--worker-timeout", "1", environment=manager.environment | period
    )
    until(lambda: manager.told("WATCHDOG"), what="a first ping")
    pids = server.worker_pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    # Both are overdue a second later, and then aborted; nobody is well until they are replaced.
    server.wait_event("worker is ended", count=2)
    count = told = len(manager.told("WATCHDOG"))

    def both_died() -> bool:
        nonlocal told
        now = len(manager.told("WATCHDOG"))  # before the log: later ones are for the new workers
        if len(server.events("worker died")) >= 2:
            return True
        told = now
        return False

    until(both_died, timeout=20.0, what="the end of both")
    assert told <= count + 1
    until(lambda: len(manager.told("WATCHDOG")) > count + 1, what="pings for the new workers")


def test_what_is_kept_serves_the_next_daemon(daemon: StartDaemon, manager: ServiceManager) -> None:
    arguments = ("--bind", ADDRESS, "--workers", "1", "--reply")
    first = daemon(*arguments, environment=manager.environment)
    until(lambda: manager.messages() and manager.store, what="a kept listener")
    [(name, fd)] = manager.store.items()
    [worker] = first.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    with socket.socket(fileno=os.dup(fd)) as kept:
        address = kept.getsockname()
    with socket.create_connection(address, timeout=20.0) as client:
        client.sendall(b"Alice")
        client.shutdown(socket.SHUT_WR)
        os.kill(first.pid, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        first.wait()
        second = start_with(daemon, name, fd, *arguments)
        assert client.recv(99) == b"Hello, Alice\n"
    assert second.address == "{}:{}".format(*address)


def test_who_was_made_deaf_by_a_gate_is_heard_by_the_next_daemon(
    daemon: StartDaemon,
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket() as client,
    ):
        listener.setsockopt(socket.IPPROTO_IP, IP_MINTTL, 255)
        # A handshake that the gate lets in, as one that had begun before it, and no word after.
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)
        client.settimeout(20.0)
        client.connect(listener.getsockname())
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 64)
        client.sendall(b"Alice")
        client.shutdown(socket.SHUT_WR)
        bind = "{}:{}".format(*listener.getsockname())
        server = start_with(
            daemon,
            Stored(label=label_of(bind)).name,
            listener.fileno(),
            *("--bind", bind, "--workers", "2", "--reply"),
        )
        assert client.recv(99) == b"Hello, Alice\n"
        [restored] = server.events("listeners restored")
        assert restored["queued"] == 1


def test_an_orphan_does_not_gate_a_socket_that_is_not_ours(daemon: StartDaemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = start_with(daemon, "a.socket", listener.fileno(), "--workers", "1")
        workers = server.worker_pids()
        os.kill(server.pid, signal.SIGKILL)
        server.process.wait()
        until(lambda: not server.processes(), what=f"the end of {workers}")
        socket.create_connection(listener.getsockname(), timeout=0.5).close()
