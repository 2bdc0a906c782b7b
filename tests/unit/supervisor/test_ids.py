"""Values that two versions of the daemon, or the master and its workers, speak to each other."""

from greeterd.supervisor.events import MENDING
from greeterd.supervisor.ids import DISPATCHER, NO_TICKET, DrainMode, WorkerState, name_of


def test_the_states_of_a_worker_have_the_values_of_the_upgrade_state() -> None:
    values = ["starting", "ready", "draining", "gone"]
    assert [state.value for state in WorkerState] == values


def test_the_drain_modes_have_the_values_of_the_channel() -> None:
    assert [mode.value for mode in DrainMode] == ["hand over", "sweep", "quick"]


def test_the_dispatcher_is_slot_0_and_is_called_by_its_name() -> None:
    assert (name_of(DISPATCHER), name_of(1)) == ("the dispatcher", "worker 1")
    assert DISPATCHER == 0


def test_the_tickets_of_no_client_are_those_of_no_client() -> None:
    assert (NO_TICKET, MENDING) == (0, -1)
