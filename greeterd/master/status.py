"""Makes the status: the supervisor's records, the scoreboard and the listeners as one Status."""

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import msgspec

from greeterd import __version__
from greeterd.config.schema import Config
from greeterd.control.status import (
    BACK_OFF,
    ListenerStatus,
    ReloadResult,
    SlotCounters,
    State,
    Status,
    WorkerStatus,
    total,
)
from greeterd.master.escrow import Escrow
from greeterd.sockets.fd_passing import is_exit
from greeterd.sockets.listener import local_address
from greeterd.sockets.sockdiag import drops
from greeterd.supervisor.ids import DISPATCHER, SlotIndex, WorkerState
from greeterd.supervisor.records import Launch, Slot, Worker
from greeterd.supervisor.supervisor import Supervisor
from greeterd.worker.counters import BLOCKED_BY_LOG, Counters
from greeterd.worker.scoreboard import Scoreboard


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusInputs:
    """The master's own part of it.  Instants are monotonic but for `since`, the wall clock."""

    pid: int
    since: float
    started: float
    now: float
    longest_stall: float
    config: Config
    config_file: Path | None
    trouble: str | None
    last_error: str | None
    warnings: list[str]
    reload: ReloadResult | None


def survey(
    supervisor: Supervisor, board: Scoreboard, escrow: Escrow, about: StatusInputs
) -> Status:
    """Return the daemon's status at `about.now`; changes nothing but the longest queue seen."""
    slots = [slot for index, slot in sorted(supervisor.slots.items()) if index != DISPATCHER]
    dispatcher = supervisor.slots.get(DISPATCHER)
    counters = {int(slot.index): _counters(board, slot.index) for slot in slots}
    gone = [
        _counters(board, SlotIndex(index))
        for index in range(1, supervisor.highest_slot + 1)
        if index not in counters
    ]
    return Status(
        version=__version__,
        pid=about.pid,
        mode=about.config.mode,
        wait=about.config.wait_strategy,
        state=_state(supervisor),
        generation=supervisor.generation,
        since=about.since,
        uptime=about.now - about.started,
        addresses=[str(address) for address in escrow.addresses],
        passed=escrow.passed,
        workers=[row for slot in slots for row in _workers(supervisor, board, slot, about.now)],
        counters=counters,
        totals=total([*counters.values(), *gone]),
        dispatcher=_workers(supervisor, board, dispatcher, about.now) if dispatcher else [],
        handed=_counters(board, DISPATCHER),
        listeners=_listeners(escrow),
        restarts_in_window=supervisor.recent_restarts(about.now),
        max_restarts=supervisor.policy.max_restarts,
        restart_window=supervisor.policy.restart_window,
        longest_stall=about.longest_stall,
        trouble=about.trouble,
        last_error=about.last_error,
        warnings=about.warnings,
        reload=about.reload,
        log_dir=str(about.config.log_dir),
        run_dir=str(about.config.run_dir),
        config=str(about.config_file) if about.config_file else None,
    )


def describe(supervisor: Supervisor, board: Scoreboard, escrow: Escrow) -> str:
    """Return the daemon in one short line, for the service manager's status."""
    slots = range(1, supervisor.highest_slot + 1)
    totals = total(_counters(board, SlotIndex(slot)) for slot in slots)
    live = supervisor.live_slots
    ready = sum(slot.ready is not None for slot in live)
    queued = escrow.queues.by_owner().total()
    return (
        f"{ready} of {len(live)} workers ready, {totals.greetings} greetings,"
        f" {totals.open} open, {queued} queued"
    )


def _state(supervisor: Supervisor) -> State:
    if supervisor.stopping is not None:
        return "stopping"
    if isinstance(supervisor.operation, Launch):
        return "starting"
    return "running" if supervisor.operation is None else "reloading"


def _counters(board: Scoreboard, slot: SlotIndex) -> SlotCounters:
    return msgspec.convert(board.total(slot), SlotCounters, from_attributes=True)


def _workers(
    supervisor: Supervisor, board: Scoreboard, slot: Slot, now: float
) -> list[WorkerStatus]:
    borrower = supervisor.worker(slot.borrower)
    lent_to = None if borrower is None else int(borrower.slot)
    if not slot.workers:
        waiting = WorkerStatus(
            slot=slot.index,
            generation=slot.generation,
            state=BACK_OFF,
            age=now - slot.unserved_since,
            restarts=slot.restarts,
            backoff=max(0.0, slot.retry_at - now),
            lent_to=lent_to,
        )
        return [waiting]
    return [
        _worker(board, slot, worker, now, lent_to if worker.state is WorkerState.READY else None)
        for worker in sorted(slot.workers, key=lambda each: each.state is WorkerState.DRAINING)
    ]


def _worker(
    board: Scoreboard, slot: Slot, worker: Worker, now: float, lent_to: int | None
) -> WorkerStatus:
    row = board.worker(worker.slot, worker.place)
    heartbeat_ns = row.heartbeat_ns
    return WorkerStatus(
        slot=worker.slot,
        generation=worker.generation,
        state=worker.state.value,
        pid=worker.pid,
        age=now - worker.since,
        heartbeat_age=max(0.0, now - heartbeat_ns / 1e9) if heartbeat_ns else None,
        restarts=slot.restarts,
        lent_to=lent_to,
        leaving=worker.state is WorkerState.DRAINING,
        log=_log_trouble(row),
    )


def _log_trouble(row: Counters) -> str | None:
    if not row.log_errno:
        return None
    if row.blocked != BLOCKED_BY_LOG:
        return f"writes to its old log, cannot open the new one: {os.strerror(row.log_errno)}"
    if row.log_errno == errno.EWOULDBLOCK:
        return "log: locked by another process"
    return f"log: {os.strerror(row.log_errno)}"


def _listeners(escrow: Escrow) -> list[ListenerStatus]:
    # Where this kernel does not tell, the rest of the status is still true.
    return [
        ListenerStatus(
            address="socketpair" if is_exit(sock) else str(local_address(sock)),
            slot=slot,
            queued=queue.now,
            queued_max=escrow.queues.longest(sock),
            limit=queue.limit,
            drops=_drops(sock),
        )
        for slot, sock, queue in escrow.queues.look()
    ]


def _drops(sock: socket.socket) -> int | None:
    try:
        return drops(sock)
    except OSError:
        return None
