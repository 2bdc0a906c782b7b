"""A Status as a daemon would send it."""

from greeterd.control.status import SlotCounters, Status, WorkerStatus, total

COUNTERS = {
    1: SlotCounters(connections=30, greetings=29, empty=1),
    2: SlotCounters(connections=10, greetings=6, timeout=2, open=2),
}


def a_status(**changes: object) -> Status:
    fields: dict[str, object] = {
        "version": "1.2.3",
        "pid": 4242,
        "mode": "inherit",
        "wait": "rotate",
        "state": "running",
        "generation": 3,
        "since": 1_700_000_000.0,
        "uptime": 3725.0,
        "addresses": ["127.0.0.1:12345"],
        "workers": [
            WorkerStatus(slot=1, pid=11, generation=3, state="ready", age=61.0, heartbeat_age=0.04),
            WorkerStatus(slot=2, pid=12, generation=3, state="ready", age=5.0, restarts=2),
        ],
        "counters": COUNTERS,
        "totals": total(COUNTERS.values()),
    }
    return Status(**(fields | changes))  # type: ignore[arg-type]
