"""CommandHandler: what each command of greeterctl does, and when it is answered."""

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from greeterd.control.protocol import COMMANDS
from greeterd.errors import ConfigError, ListenError
from greeterd.master.commands import SERVING, CommandHandler
from greeterd.supervisor.actions import Finished, Spawn
from greeterd.supervisor.events import MENDING, Restart, Scale, Stop, Upgrade
from greeterd.supervisor.ids import NO_TICKET, Generation, SlotIndex, Ticket
from tests.unit.master.parts import Parts


class FakeRequest:
    """A request, and how it was answered."""

    def __init__(self, command: str, **arguments: object) -> None:
        self.command = command
        self.arguments = arguments
        self.answers: list[dict[str, Any]] = []
        self.gone = False
        self.fd = 42

    def answer(self, ok: bool, **fields: object) -> None:
        """Note the answer."""
        self.answers.append({"ok": ok, **fields})


class Handled:
    """A handler among stand-ins for the parts that it calls."""

    def __init__(self, workers: int = 2) -> None:
        self.parts = Parts(workers=workers)
        self.parts.start()
        self.parts.fed.clear()
        self.looks = 0
        self.trouble_found = ""
        self.mender = SimpleNamespace(trouble="", look=self._look)
        self.unreachable = ""
        self.names = SimpleNamespace(require_listeners=self._require_listeners)
        self.outdated: list[str] = []
        self.reloads: list[Ticket] = []
        self.reload_error = ""
        self.concluded: list[str] = []
        self.reopened: list[tuple[str, Callable[[str], None]]] = []
        self.adopted: list[int] = []
        self.control = SimpleNamespace(
            log=None,
            adopt=self.adopted.append,
            adopt_request=lambda _fd, command: FakeRequest(command),
        )
        parts: dict[str, Any] = {
            "workers": SimpleNamespace(reopen=lambda *given: self.reopened.append(given)),
            "mender": self.mender,
            "names": self.names,
            "outdated": SimpleNamespace(finished=self.outdated.append),
            "reloader": SimpleNamespace(begin=self._reload, conclude=self.concluded.append),
            "status": lambda: "the status",
        }
        control: Any = self.control
        self.handler = CommandHandler(self.parts.context, control, **parts)

    def _look(self) -> None:
        self.looks += 1
        self.mender.trouble = self.trouble_found

    def _require_listeners(self) -> None:
        if self.unreachable:
            raise ListenError(self.unreachable)

    def _reload(self, ticket: Ticket) -> None:
        if self.reload_error:
            raise ConfigError(self.reload_error)
        self.reloads.append(ticket)

    def ask(self, command: str, **arguments: object) -> FakeRequest:
        """Have a request handled."""
        request: Any = FakeRequest(command, **arguments)
        self.handler.handle(request)
        assert isinstance(request, FakeRequest)
        return request

    def finish(self, command: str, reason: str = "", ticket: Ticket = NO_TICKET) -> None:
        """Have the supervisor say that a command has ended."""
        self.handler.finish(Finished(ticket, command, reason, Generation(3), 2))

    @property
    def logged(self) -> list[tuple[str, str, dict[str, Any]]]:
        """What stands in the daemon log."""
        return self.parts.log.records


@pytest.fixture
def handled() -> Handled:
    return Handled()


def test_each_command_of_the_protocol_has_a_handler_and_no_other_has() -> None:
    handlers = {name for name in dir(CommandHandler) if name.startswith("on_")}
    assert handlers == {f"on_{command}" for command in COMMANDS}


# Questions


def test_ping_is_answered_at_once(handled: Handled) -> None:
    assert handled.ask("ping").answers == [{"ok": True, "pid": os.getpid()}]


def test_ping_tells_of_an_address_that_does_not_accept(handled: Handled) -> None:
    handled.mender.trouble = "127.0.0.1:7 does not accept"
    [answer] = handled.ask("ping").answers
    assert answer == {"ok": False, "pid": os.getpid(), "error": "127.0.0.1:7 does not accept"}


def test_ping_tells_of_a_stop_rather_than_of_what_it_brings(handled: Handled) -> None:
    handled.parts.feed(Stop())
    handled.mender.trouble = "127.0.0.1:7 does not accept"
    [answer] = handled.ask("ping").answers
    assert (answer["ok"], answer["error"]) == (False, "the daemon is stopping")


def test_status_is_answered_at_once(handled: Handled) -> None:
    assert handled.ask("status").answers == [{"ok": True, "status": "the status"}]


# What takes time


@pytest.mark.parametrize(
    ("command", "arguments", "event"),
    [
        ("scale", {"workers": 4}, Scale(workers=4, ticket=Ticket(1))),
        ("restart", {"slot": None}, Restart(None, ticket=Ticket(1))),
        ("restart", {"slot": 0}, Restart(SlotIndex(0), ticket=Ticket(1))),
        ("restart", {"slot": 2}, Restart(SlotIndex(2), ticket=Ticket(1))),
        ("upgrade", {}, Upgrade(ticket=Ticket(1))),
        ("stop", {"now": False}, Stop(quick=False, ticket=Ticket(1))),
        ("stop", {"now": True}, Stop(quick=True, ticket=Ticket(1))),
    ],
)
def test_a_command_becomes_an_event_and_is_answered_when_it_has_ended(
    handled: Handled, command: str, arguments: dict[str, object], event: object
) -> None:
    request = handled.ask(command, **arguments)
    assert handled.parts.fed == [event]
    assert request.answers == []
    handled.finish(command, ticket=Ticket(1))
    assert request.answers == [{"ok": True, "generation": 3, "workers": 2}]
    handled.finish(command, ticket=Ticket(1))
    assert len(request.answers) == 1


def test_each_request_is_answered_with_its_own_end(handled: Handled) -> None:
    first, second = handled.ask("scale", workers=3), handled.ask("scale", workers=4)
    handled.finish("scale", "no", ticket=Ticket(2))
    assert first.answers == []
    assert second.answers == [{"ok": False, "generation": 3, "workers": 2, "error": "no"}]


def test_a_reload_begins_and_the_service_manager_hears_of_it(handled: Handled) -> None:
    handled.ask("reload")
    assert (handled.reloads, handled.parts.service_manager.calls) == ([1], ["begin"])


@pytest.mark.parametrize("command", ["reload", "upgrade"])
def test_the_service_manager_hears_of_the_end(handled: Handled, command: str) -> None:
    handled.ask(command)
    handled.finish(command, "it broke", ticket=Ticket(1))
    assert handled.parts.service_manager.calls == ["begin", f"end {command} failed: it broke"]
    handled.ask(command)
    handled.finish(command, ticket=Ticket(2))
    assert handled.parts.service_manager.calls[2:] == ["begin", "end"]


@pytest.mark.parametrize("command", ["restart", "scale", "stop"])
def test_the_service_manager_does_not_hear_of_other_commands(
    handled: Handled, command: str
) -> None:
    handled.finish(command)
    handled.finish(command, "no")
    assert handled.parts.service_manager.calls == []


def test_a_reload_that_is_refused_is_answered_with_the_state_as_it_is(handled: Handled) -> None:
    handled.reload_error = "workers: not a number"
    request = handled.ask("reload")
    reason = "workers: not a number"
    assert request.answers == [{"ok": False, "generation": 1, "workers": 2, "error": reason}]
    assert handled.parts.service_manager.calls == ["begin", f"end reload failed: {reason}"]
    assert ("error", "reload failed", {"reason": reason}) in handled.logged
    assert handled.parts.log.last_error == f"reload: {reason}"
    assert handled.concluded == [reason]


@pytest.mark.parametrize(
    ("command", "arguments"), [("reload", {}), ("restart", {"slot": None}), ("upgrade", {})]
)
def test_no_workers_are_started_that_could_not_be_reached(
    handled: Handled, command: str, arguments: dict[str, object]
) -> None:
    handled.unreachable = "unix listener /x: it is gone"
    [answer] = handled.ask(command, **arguments).answers
    assert (answer["ok"], answer["error"]) == (False, "unix listener /x: it is gone")
    assert (handled.parts.fed, handled.reloads) == ([], [])


# Ends


def test_an_end_is_logged(handled: Handled) -> None:
    handled.finish("scale")
    assert handled.logged == [("info", "scale done", {"generation": 3, "workers": 2})]
    assert handled.parts.log.last_error is None


@pytest.mark.parametrize("command", sorted({*SERVING, "stop"}))
def test_what_leaves_an_address_shut_has_not_succeeded(handled: Handled, command: str) -> None:
    handled.trouble_found = "127.0.0.1:7 does not accept"
    handled.finish(command)
    failed = command in SERVING
    assert handled.looks == failed
    [(level, event, _)] = handled.logged
    expected = ("error", f"{command} failed") if failed else ("info", f"{command} done")
    assert (level, event) == expected


def test_a_failure_stays_the_reason_whatever_the_listeners_are(handled: Handled) -> None:
    handled.trouble_found = "127.0.0.1:7 does not accept"
    handled.finish("restart", "it broke")
    assert handled.logged == [("error", "restart failed", {"reason": "it broke"})]


@pytest.mark.parametrize(
    ("command", "reason", "concluded"),
    [
        ("reload", "", [""]),
        ("reload", "it broke", ["it broke"]),
        ("upgrade", "", [""]),
        ("upgrade", "it broke", []),
        ("restart", "", []),
    ],
)
def test_a_reload_is_concluded_and_an_upgrade_that_was_one(
    handled: Handled, command: str, reason: str, concluded: list[str]
) -> None:
    handled.finish(command, reason)
    assert handled.concluded == concluded
    assert (handled.control.log is handled.parts.log) == bool(concluded)


def test_a_replacement_of_outdated_workers_is_told_to_who_asked_for_it(handled: Handled) -> None:
    handled.finish("restart")
    assert handled.outdated == []
    handled.finish("restart", "it broke", MENDING)
    handled.finish("restart", "", MENDING)
    assert handled.outdated == ["it broke", ""]


# By signals, too


def test_a_reload_that_a_signal_asks_for_waits_for_what_is_under_way(handled: Handled) -> None:
    handled.parts.feed(Scale(change=1))
    assert handled.parts.supervisor.operation is not None
    handled.handler.reload_soon()
    handled.handler.reload_soon()
    handled.handler.attend()
    assert handled.reloads == []
    handled.parts.start()
    assert handled.parts.take(Spawn) == []
    for _ in range(2):
        handled.handler.attend()
    assert handled.reloads == [NO_TICKET]


def test_a_reload_that_a_signal_asks_for_is_refused_by_a_stop_at_once(handled: Handled) -> None:
    handled.parts.feed(Scale(change=1))
    handled.parts.feed(Stop())
    handled.handler.reload_soon()
    handled.handler.attend()
    assert handled.reloads == [NO_TICKET]


def test_logs_are_reopened_by_all_before_that_is_answered(handled: Handled) -> None:
    request = handled.ask("reopen")
    [(reason, done)] = handled.reopened
    assert (reason, request.answers, handled.logged) == ("", [], [])
    done("")
    assert request.answers == [{"ok": True}]
    assert handled.logged == [("info", "logs reopened", {})]


def test_a_log_that_cannot_be_reopened_is_the_answer(handled: Handled) -> None:
    handled.parts.log.failure = "daemon log /x: gone"
    request = handled.ask("reopen")
    [(reason, done)] = handled.reopened
    assert reason == "daemon log /x: gone"
    done("daemon log /x: gone; worker log: full")
    assert request.answers == [{"ok": False, "error": "daemon log /x: gone; worker log: full"}]
    assert handled.logged == []


def test_a_signal_reopens_and_upgrades_without_anyone_to_answer(handled: Handled) -> None:
    handled.handler.reopen()
    handled.reopened[0][1]("")
    handled.handler.upgrade()
    assert handled.parts.fed == [Upgrade(ticket=NO_TICKET)]
    assert handled.looks == 1


# Over an upgrade


def test_the_client_that_awaits_an_upgrade_is_known_while_it_is_there(handled: Handled) -> None:
    request = handled.ask("upgrade")
    assert handled.handler.client_fd(Ticket(1)) == 42
    assert handled.handler.client_fd(NO_TICKET) is None
    request.gone = True
    assert handled.handler.client_fd(Ticket(1)) is None


def test_a_predecessors_clients_are_taken_over(handled: Handled) -> None:
    state: Any = SimpleNamespace(idle_fds=[5, 6], client_fd=None)
    assert handled.handler.adopt(state) == NO_TICKET
    assert handled.adopted == [5, 6]
    state = SimpleNamespace(idle_fds=[], client_fd=7)
    ticket = handled.handler.adopt(state)
    assert handled.handler.client_fd(ticket) == 42
