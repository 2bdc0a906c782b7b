"""Sockets that were passed at a start: which are taken, which are refused, which are dropped."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from greeterd.config.schema import Config
from greeterd.errors import ConfigError
from greeterd.master.escrow import Escrow
from greeterd.master.systemd.activation import Passed, SocketAssignment, Stale, assign
from greeterd.master.systemd.fdstore import Stored, label_of
from greeterd.master.systemd.receive import bind_by, receive
from greeterd.master.upgrade.state import InheritedListeners
from greeterd.sockets import steering
from greeterd.sockets.address import parse_address
from greeterd.sockets.listener import open_member
from greeterd.supervisor.ids import SlotIndex
from greeterd.system import sd_daemon

HERE, THERE, FILE = "127.0.0.1:80", "127.0.0.1:81", "unix:/run/g"
UID = 1000
INHERIT = Config(bind=(HERE,), workers=2)
REUSEPORT = Config(mode="reuseport", bind=(HERE,), workers=2)


def passed(*addresses: str, first: int = 3, **differs: object) -> list[Passed]:
    """Return sockets of a socket unit, with consecutive descriptors."""
    sockets = [
        Passed(name="g.socket", fd=fd, address=parse_address(address), shares=True)
        for fd, address in enumerate(addresses, start=first)
    ]
    return [replace(one, **differs) for one in sockets]  # type: ignore[arg-type]


# Of a socket unit


def test_in_mode_inherit_each_address_has_one_socket() -> None:
    found = assign(passed(HERE, THERE, FILE), INHERIT, uid=UID)
    assert found == SocketAssignment(listeners=InheritedListeners(shared=[3, 4, 5], passed=True))


def test_in_mode_reuseport_each_worker_has_one_socket_of_each_address() -> None:
    found = assign(passed(HERE, THERE, HERE, THERE, HERE, THERE), REUSEPORT, uid=UID).listeners
    assert found is not None
    assert found.slots == {1: [3, 4], 2: [5, 6], 3: [7, 8]}
    assert (found.order, found.guards, found.passed) == ([1, 2, 3], [], True)


@pytest.mark.parametrize(
    ("sockets", "config", "reason"),
    [
        (passed(HERE, HERE), INHERIT, f"2 sockets for {HERE} were passed by g.socket"),
        (passed(HERE, FILE), REUSEPORT, "takes no unix sockets"),
        (passed(HERE, HERE, THERE), REUSEPORT, f"there are 2 for {HERE}, 1 for {THERE}"),
        (passed(HERE, shares=False), REUSEPORT, "needs ReusePort=yes"),
        (passed(*[HERE] * 513), REUSEPORT, "for 512 workers at most"),
        (passed(HERE, type=socket.SOCK_DGRAM), INHERIT, "descriptor 3, .* is a datagram socket"),
        (passed(FILE, type=socket.SOCK_SEQPACKET), INHERIT, "is a socket of packets"),
        (passed(HERE, listens=False), INHERIT, "does not listen"),
        (passed(HERE, listens=False, connected=True), INHERIT, "needs Accept=no"),
        (passed(HERE, address=None), INHERIT, "neither of TCP nor a unix socket"),
    ],
)
def test_sockets_that_do_not_fit_are_refused(
    sockets: list[Passed], config: Config, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        assign(sockets, config, uid=UID)


def test_a_socket_unit_makes_the_store_useless() -> None:
    kept = stored(Stored(label=label_of(HERE)), fd=9)
    found = assign([kept, *passed(HERE)], INHERIT, uid=UID)
    assert found.listeners == InheritedListeners(shared=[3], passed=True)
    assert found.stale == (Stale(kept.name, 9, "a socket unit has passed others"),)


def test_without_sockets_there_is_nothing_to_take() -> None:
    assert assign([], INHERIT, uid=UID) == SocketAssignment()


# Of the store


def stored(what: Stored, fd: int, **differs: object) -> Passed:
    """Return a descriptor that is what its name says."""
    text = next(text for text in (HERE, THERE, FILE) if label_of(text) == what.label)
    usual = Passed(
        name=what.name,
        fd=fd,
        address=parse_address(text),
        listens=not what.guard,
        shares=True,
        uid=UID,
        file=what.file,
    )
    return replace(usual, **differs)  # type: ignore[arg-type]


def member(slot: int, index: int, fd: int, text: str = HERE, **differs: object) -> Passed:
    return stored(Stored(label=label_of(text), slot=slot, index=index), fd, **differs)


def guard(fd: int, text: str = HERE, **differs: object) -> Passed:
    return stored(Stored(label=label_of(text), guard=True), fd, **differs)


def test_shared_listeners_are_taken_back_in_the_order_of_bind_and_what_is_missing_is_opened() -> (
    None
):
    config = replace(INHERIT, bind=(THERE, FILE, HERE))
    sockets = [
        stored(Stored(label=label_of(HERE)), 3),
        stored(Stored(label=label_of(FILE), file=(1, 2)), 4),
    ]
    listeners = InheritedListeners(shared=[None, 4, 3], unix_files={"/run/g": (1, 2)})
    assert assign(sockets, config, uid=UID) == SocketAssignment(listeners=listeners)


def test_slots_are_taken_back_by_their_numbers_and_in_their_order() -> None:
    sockets = [member(4, 1, 3), guard(4), member(1, 0, 5), member(3, 2, 6)]
    listeners = InheritedListeners(guards=[4], slots={1: [5], 3: [6], 4: [3]}, order=[1, 4, 3])
    assert assign(sockets, REUSEPORT, uid=UID) == SocketAssignment(listeners=listeners)


def test_a_slot_without_all_its_listeners_is_dropped_and_the_last_takes_its_index() -> None:
    config = replace(REUSEPORT, bind=(HERE, THERE))
    sockets = [guard(3), guard(4, THERE)]
    for slot in (1, 2, 3):
        sockets += [member(slot, slot - 1, slot * 10), member(slot, slot - 1, slot * 10 + 1, THERE)]
    found = assign([one for one in sockets if one.fd != 11], config, uid=UID)
    assert found.listeners is not None
    assert found.listeners.slots == {2: [20, 21], 3: [30, 31]}
    assert found.listeners.order == [3, 2]
    assert [(one.fd, one.reason) for one in found.stale] == [
        (10, "its slot has no listener elsewhere")
    ]


@pytest.mark.parametrize(
    ("sockets", "config", "stale"),
    [
        ([member(1, 0, 3), guard(4)], INHERIT, {3, 4}),
        ([stored(Stored(label=label_of(HERE)), 3)], REUSEPORT, {3}),
        ([stored(Stored(label=label_of(THERE)), 3)], INHERIT, {3}),
        ([stored(Stored(label=label_of(HERE)), 3, listens=False)], INHERIT, {3}),
        ([stored(Stored(label=label_of(HERE)), 3, address=None)], INHERIT, {3}),
        ([stored(Stored(label=label_of(HERE)), 3, name="escrow/of-2030")], INHERIT, {3}),
        ([stored(Stored(label=label_of(FILE), file=(1, 2)), 3, file=(1, 3))], INHERIT, {3}),
        ([member(1, 0, 3), member(2, 1, 4)], REUSEPORT, {3, 4}),
        ([guard(3), member(1, 0, 4, uid=0)], REUSEPORT, {4}),
        ([guard(3), member(1, 0, 4, shares=False)], REUSEPORT, {4}),
        ([guard(3), guard(4), member(1, 0, 5)], REUSEPORT, {4}),
        ([guard(3, listens=True), member(1, 0, 4)], REUSEPORT, {3, 4}),
    ],
)
def test_what_does_not_fit_is_stale_and_the_rest_is_not(
    sockets: list[Passed], config: Config, stale: set[int]
) -> None:
    config = replace(config, bind=(FILE,)) if "unix" in sockets[0].name else config
    found = assign(sockets, config, uid=UID)
    assert {one.fd for one in found.stale} == stale
    assert all(one.reason for one in found.stale)
    kept = found.listeners or InheritedListeners()
    assert {*kept.listening(), *kept.guards} == {one.fd for one in sockets} - stale


# The configuration


@pytest.fixture
def group() -> Iterator[InheritedListeners]:
    """Give two reuseport listeners of one address, as a socket unit passes them."""
    with ExitStack() as stack:
        first = stack.enter_context(socket.create_server(("127.0.0.1", 0), reuse_port=True))
        second = stack.enter_context(socket.create_server(first.getsockname(), reuse_port=True))
        slots = {1: [first.fileno()], 2: [second.fileno()]}
        yield InheritedListeners(slots=slots, order=[1, 2], passed=True)


def address_of(listeners: InheritedListeners) -> str:
    with socket.socket(fileno=os.dup(listeners.listening()[0])) as sock:
        return "{}:{}".format(*sock.getsockname())


def test_sockets_decide_the_addresses_and_the_workers_also_of_a_reload(
    group: InheritedListeners,
) -> None:
    auto = replace(REUSEPORT, workers="auto")
    config, reload = bind_by(group, auto, lambda: REUSEPORT)
    assert (config.bind, config.workers) == ((address_of(group),), 2)
    assert (reload().bind, reload().workers) == ((address_of(group),), 2)


def test_another_number_of_workers_than_sockets_is_refused(group: InheritedListeners) -> None:
    _, reload = bind_by(group, REUSEPORT, lambda: replace(REUSEPORT, workers=1))
    with pytest.raises(ConfigError, match=r"workers = 1, and .* 2 sockets for 127.0.0.1"):
        reload()
    with pytest.raises(ConfigError, match="workers = 3"):
        bind_by(group, replace(REUSEPORT, workers=3), lambda: REUSEPORT)


def test_the_configuration_must_be_possible_with_the_sockets(group: InheritedListeners) -> None:
    first, second = group.listening()
    several = InheritedListeners(shared=[first, second], passed=True)
    with pytest.raises(ConfigError, match="with the sockets of the service manager"):
        bind_by(several, replace(INHERIT, wait="blocking"), lambda: INHERIT)


def test_listeners_of_our_own_leave_the_configuration_alone(group: InheritedListeners) -> None:
    def reload() -> Config:
        return INHERIT

    own = InheritedListeners(shared=[group.listening()[0]])
    for listeners in (None, own):
        assert bind_by(listeners, INHERIT, reload) == (INHERIT, reload)


# Real sockets


class Manager:
    """A service manager that passes sockets to the next daemon, and hears what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed: list[tuple[str, int]] = []
        self.heard: list[str] = []
        self.escrows: list[Escrow] = []
        monkeypatch.setattr(sd_daemon, "listen_fds", lambda: self.passed)
        monkeypatch.setattr(sd_daemon, "remove_fds", self.heard.append)
        monkeypatch.setattr(sd_daemon, "barrier", lambda _timeout: self.heard.append("barrier"))

    def keep(self, name: str, fd: int) -> None:
        """Have a descriptor to pass."""
        self.passed.append((name, os.dup(fd)))

    def start(self, config: Config) -> Escrow:
        """Start a daemon with what is passed."""
        sockets = receive(config)
        self.passed.clear()
        config, _ = bind_by(sockets.listeners, config, lambda: config)
        escrow = Escrow(config, sockets.listeners)
        self.escrows.append(escrow)
        escrow.arrange()
        return escrow


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    found = Manager(monkeypatch)
    yield found
    for escrow in found.escrows:
        escrow.close()
    for _, fd in found.passed:
        with suppress(OSError):  # the daemon has closed what was stale
            os.close(fd)


def connect(sock: socket.socket) -> socket.socket:
    client = socket.create_connection(sock.getsockname(), timeout=0.2)
    client.settimeout(5.0)
    return client


def test_passed_sockets_listen_on_without_a_gate_and_after_the_end(manager: Manager) -> None:
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        manager.keep("g.socket", theirs.fileno())
        escrow = manager.start(INHERIT)
        [ours] = escrow.listeners()
        assert not os.get_blocking(ours.fileno()), "systemd has passed it blocking"
        assert escrow.holdings() == {}
        escrow.gate()
        connect(theirs).close()
        escrow.close()
        connect(theirs).close()


def test_a_passed_unix_socket_keeps_its_file(manager: Manager, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(path))
        theirs.listen()
        manager.keep("g.socket", theirs.fileno())
        escrow = manager.start(INHERIT)
        assert [str(one) for one in escrow.addresses] == [f"unix:{path}"]
        escrow.gate()
        escrow.close()
        assert path.is_socket()


def test_a_slot_of_passed_sockets_rests_and_is_used_again(manager: Manager) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(socket.create_server(("127.0.0.1", 0), reuse_port=True))
        second = stack.enter_context(socket.create_server(first.getsockname(), reuse_port=True))
        manager.keep("g.socket", first.fileno())
        manager.keep("g.socket", second.fileno())
        escrow = manager.start(replace(REUSEPORT, workers="auto"))
        one, two = SlotIndex(1), SlotIndex(2)
        assert escrow.groups.most_slots == 2

        def spread() -> tuple[int, int]:
            before = escrow.queues.by_owner()
            for _ in range(32):
                stack.enter_context(connect(first))
            after = escrow.queues.by_owner()
            return after[one] - before[one], after[two] - before[two]

        escrow.steer_away(two)
        escrow.close_slot(two)
        assert spread() == (32, 0)
        assert escrow.for_slot(two), "the next worker of the slot serves the same socket"
        escrow.use(two)
        assert all(spread())
        escrow.steer_away(two)
        escrow.close_slot(two)
        escrow.close()
        for sock in (first, second):
            sock.setblocking(False)
        for _ in range(32):
            stack.enter_context(connect(first))
        counts = [accept_all(sock) for sock in (first, second)]
        assert counts[1] > sum(counts) / 8, "the kernel's hash again"


def accept_all(sock: socket.socket) -> int:
    """Accept and close all connections that wait; return their number."""
    count = 0
    while True:
        try:
            sock.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def test_a_kept_listener_comes_back_with_who_waits_there_and_without_its_gate(
    manager: Manager,
) -> None:
    config = replace(INHERIT, bind=("127.0.0.1:0",))
    before = manager.start(config)
    [(name, fd)] = before.holdings().items()
    with socket.socket(fileno=os.dup(fd)) as kept, connect(kept):
        before.gate()
        with pytest.raises(TimeoutError):
            connect(kept)
        before.close()
        manager.keep(name, kept.fileno())
        after = manager.start(config)
        assert after.addresses == before.addresses, "port 0 is resolved once"
        [restored] = after.listeners()
        restored.accept()[0].close()
        connect(kept).close()
        assert list(after.holdings()) == [name]


def test_who_was_let_in_by_a_gate_that_looks_at_ttls_is_said_to_be_deaf(manager: Manager) -> None:
    config = replace(INHERIT, bind=("127.0.0.1:0",))
    for ttl in (0, 255):
        before = manager.start(config)
        [(name, fd)] = before.holdings().items()
        before.listeners()[0].setsockopt(socket.IPPROTO_IP, 21, ttl)  # IP_MINTTL
        manager.keep(name, fd)
        before.close()
        after = manager.start(config)
        assert after.gated == after.dump().gated == (ttl == 255)
        assert not steering.is_gated_by_ttl(after.listeners()[0])
        after.close()


def test_kept_slots_come_back_in_the_kernel_s_order(manager: Manager) -> None:
    config = replace(REUSEPORT, bind=("127.0.0.1:0",))
    before = manager.start(config)
    slots = [SlotIndex(number) for number in range(1, 5)]
    for slot in slots:
        before.groups.admit(slot, [open_member(before.addresses[0]).detach()])
    before.close_slot(slots[1])
    for name, fd in sorted(before.holdings().items()):
        manager.keep(name, fd)
    before.close()
    after = manager.start(config)
    assert after.dump().order == [1, 4, 3]
    after.steer_away(slots[3])
    with ExitStack() as stack:
        for _ in range(32):
            stack.enter_context(connect(after.listeners()[0]))
    assert [after.queues.by_owner()[slot] > 0 for slot in slots] == [True, False, True, False]


def test_what_is_stale_is_closed_for_everyone_and_leaves_the_store(manager: Manager) -> None:
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        manager.keep("escrow/of-2030", theirs.fileno())
        found = receive(INHERIT)
        assert found.listeners is None
        assert manager.heard == ["escrow/of-2030", "barrier"]
        with pytest.raises(ConnectionRefusedError):
            connect(theirs)


@pytest.mark.parametrize(
    ("family", "kind", "reason"),
    [
        (socket.AF_INET, socket.SOCK_DGRAM, "is a datagram socket"),
        (socket.AF_INET, socket.SOCK_STREAM, "does not listen"),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET, "is a socket of packets"),
        (socket.AF_NETLINK, socket.SOCK_RAW, "is no stream socket"),
    ],
)
def test_real_sockets_of_another_kind_are_refused(
    manager: Manager, family: int, kind: int, reason: str
) -> None:
    with socket.socket(family, kind) as theirs:
        manager.keep("g.socket", theirs.fileno())
        with pytest.raises(ConfigError, match=reason):
            receive(INHERIT)


def test_a_connection_and_an_abstract_address_are_refused(manager: Manager) -> None:
    left, right = socket.socketpair()
    with left, right, socket.socket(socket.AF_UNIX) as abstract:
        manager.keep("g.socket", left.fileno())
        with pytest.raises(ConfigError, match="neither of TCP"):
            receive(INHERIT)
        abstract.bind("\0" + os.urandom(8).hex())
        abstract.listen()
        manager.passed.clear()
        manager.keep("g.socket", abstract.fileno())
        with pytest.raises(ConfigError, match="the path of a unix socket must be absolute"):
            receive(INHERIT)
