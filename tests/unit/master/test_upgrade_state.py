"""The upgrade state: what two versions speak to each other."""

import msgspec
import pytest

from greeterd.master.upgrade.state import (
    InheritedListeners,
    InheritedRow,
    InheritedSlot,
    InheritedWorker,
    UpgradeState,
)

OLD_WORKER = (
    '{"worker":7,"pid":41,"place":1,"generation":2,"life":"ready","since":10.0,"deadline":null,'
    '"leaving":null,"accepts":true,"channel_fd":20,"stack_fd":21}'
)
OLD = (
    '{"version":1,"program":"0.1.0","fixed":{"mode":"inherit"},"listeners":{"shared":[30],'
    '"guards":[],"slots":{},"order":[],"unix_files":{},"avoided":[],"pairs":{},"routed":[],'
    '"passed":false,"gated":false},"slots":[{"index":1,"generation":2,"served":true,"failures":0,'
    '"restarts":1,"retry_at":0.0,"served_since":1.0,"unserved_since":0.0,'
    f'"workers":[{OLD_WORKER}]}}],"board_fd":31,"lock_fd":32,"control_fd":33,"client_fd":null,'
    '"idle_fds":[],"generation":2,"last_generation":2,"last_worker":7,"highest_slot":0,'
    '"since":100.0,"started":5.0,"left":null}'
)
"""What a build of version 0.1 has written."""


def state(**more: object) -> UpgradeState:
    """Return what an upgrade state has at least, and more."""
    least = {
        "program": "1", "fixed": {}, "listeners": InheritedListeners(), "slots": [], "board_fd": 1,
        "lock_fd": 2, "control_fd": 3, "generation": 1, "last_generation": 1, "last_worker": 1,
        "since": 0.0, "started": 0.0,
    }  # fmt: skip
    return UpgradeState(**(least | more))  # type: ignore[arg-type]


def worker(**more: object) -> InheritedWorker:
    """Return a worker with descriptors of its own, and more."""
    least = {
        "worker": 1, "pid": 2, "place": 0, "generation": 1, "life": "ready", "since": 0.0,
        "channel_fd": 50, "stack_fd": 51,
    }  # fmt: skip
    return InheritedWorker(**(least | more))  # type: ignore[arg-type]


def slot(*workers: InheritedWorker) -> InheritedSlot:
    """Return a slot with these workers."""
    return InheritedSlot(
        index=1, generation=1, served=True, failures=0, restarts=0, retry_at=0.0, served_since=0.0,
        unserved_since=0.0, workers=list(workers),
    )  # fmt: skip


def test_state_lists_every_descriptor_in_it() -> None:
    listeners = InheritedListeners(
        shared=[10, None], guards=[11], slots={1: [12, 13], 2: [14]}, pairs={3: (15, 16)}
    )
    full = state(
        listeners=listeners,
        slots=[slot(worker(), worker(channel_fd=52, stack_fd=53, log_lock_fd=54))],
        rows=[InheritedRow(slot=1, place=0, fd=60, believed=[])],
        client_fd=70,
        log_fd=71,
        idle_fds=[72, 73],
    )
    assert full.fds() == {
        1, 2, 3, *range(10, 17), 50, 51, 52, 53, 54, 60, 70, 71, 72, 73,
    }  # fmt: skip
    assert state().fds() == {1, 2, 3}
    assert sorted(listeners.listening()) == [10, 12, 13, 14]


def test_state_of_an_older_build_is_read_with_defaults_for_what_it_lacks() -> None:
    found = msgspec.json.decode(OLD, type=UpgradeState)
    [of_one] = found.slots
    [old] = of_one.workers
    assert (found.program, found.version, found.listeners.shared) == ("0.1.0", 1, [30])
    assert (old.worker, old.pid, old.place, old.life) == (7, 41, 1, "ready")
    assert (old.log_lock_fd, old.credit, of_one.deaths) == (None, None, [])
    assert (found.rows, found.log_fd, found.control_file, found.left) == (None, None, None, None)
    assert found.fds() == {20, 21, 30, 31, 32, 33}


def test_state_has_defaults_under_which_an_older_build_goes_on_as_it_was() -> None:
    found = msgspec.json.decode(OLD, type=UpgradeState)
    least = msgspec.json.decode(
        b'{"worker":1,"pid":2,"place":0,"generation":1,"life":"ready","since":0,'
        b'"channel_fd":3,"stack_fd":4}',
        type=InheritedWorker,
    )
    assert (least.accepts, least.deadline, least.leaving) == (True, None, None)
    listeners = InheritedListeners()
    assert (listeners.passed, listeners.gated) == (False, False)
    row = msgspec.json.decode(b'{"slot":1,"place":0,"fd":5,"believed":[]}', type=InheritedRow)
    assert (row.offset, row.own, row.greetings_before) == (0, True, 0)
    assert (state().highest_slot, state().version) == (found.highest_slot, found.version) == (0, 1)


def test_state_of_a_newer_build_is_read_without_what_is_not_known() -> None:
    newer = msgspec.json.decode(OLD)
    newer["colour"] = newer["slots"][0]["colour"] = newer["listeners"]["colour"] = {"any": 1}
    found = msgspec.json.decode(msgspec.json.encode(newer), type=UpgradeState)
    assert found == msgspec.json.decode(OLD, type=UpgradeState)


def test_state_has_no_field_less_than_that_of_an_older_build() -> None:
    full = msgspec.to_builtins(state(slots=[slot(worker())]))
    old = msgspec.json.decode(OLD)
    for ours, theirs in (
        (full, old),
        (full["listeners"], old["listeners"]),
        (full["slots"][0], old["slots"][0]),
        (full["slots"][0]["workers"][0], old["slots"][0]["workers"][0]),
    ):
        assert theirs.keys() <= ours.keys(), "a downgrade needs them"


@pytest.mark.parametrize(
    ("now", "differ"),
    [
        ([("mode", "inherit"), ("bind", "a")], []),
        ([("mode", "handoff"), ("bind", "b")], ["mode", "bind"]),
        ([("mode", "inherit"), ("newer", "x")], []),
    ],
)
def test_state_names_the_fixed_settings_that_differ(
    now: list[tuple[str, str]], differ: list[str]
) -> None:
    assert state(fixed={"mode": "inherit", "bind": "a", "older": "y"}).differences(now) == differ
