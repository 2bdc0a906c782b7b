"""Sets the process titles that ps(1) and top(1) show."""

import os

# setproctitle overwrites argv and, for more room, the environment behind it, unless this variable
# is set before its first use. /proc/PID/environ must stay true.
os.environ.setdefault("SPT_NOENV", "1")

import setproctitle

from greeterd.supervisor.ids import DISPATCHER


def title_master(mode: str, addresses: list[str], state: str = "") -> None:
    """Set the title of the master."""
    note = f" ({state})" if state else ""
    setproctitle.setproctitle(f"greeterd: master [{mode} {' '.join(addresses)}]{note}")


def title_worker(slot: int, generation: int, state: str = "") -> None:
    """Set the title of a slot's worker, or of the dispatcher."""
    note = f" [{state}]" if state else ""
    who = "dispatcher" if slot == DISPATCHER else f"worker {slot}"
    setproctitle.setproctitle(f"greeterd: {who} gen {generation}{note}")
