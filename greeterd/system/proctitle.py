"""Names the processes as ps(1) and top(1) show them."""

import os

# setproctitle writes over argv and, to have more room, over the environment behind it, unless it is
# told so before its first use; /proc/PID/environ is to go on telling the truth.
os.environ.setdefault("SPT_NOENV", "1")

import setproctitle

from greeterd.supervisor.ids import DISPATCHER


def title_master(mode: str, addresses: list[str], state: str = "") -> None:
    """Name this process the master of a daemon."""
    note = f" ({state})" if state else ""
    setproctitle.setproctitle(f"greeterd: master [{mode} {' '.join(addresses)}]{note}")


def title_worker(slot: int, generation: int, state: str = "") -> None:
    """Name this process the worker of a slot, or the dispatcher."""
    note = f" [{state}]" if state else ""
    who = "dispatcher" if slot == DISPATCHER else f"worker {slot}"
    setproctitle.setproctitle(f"greeterd: {who} gen {generation}{note}")
