"""Decides which CPUs servers and clients run on, so that neither takes the other's time."""

from typing import Final

from greeterd.bench.experiment.plan import Pin
from greeterd.errors import UsageError
from greeterd.system.cpus import allowed_cpus, parse_cpus, render_cpus, unusable

NOWHERE: Final = "nothing pinned"


def choose_pin(text: str) -> Pin:
    """Return the CPUs of servers and clients: `off`, `auto`, or a list of the servers'.

    Raises:
        UsageError: it is no list of usable CPUs, or leaves none to the clients.
    """
    usable = sorted(allowed_cpus())
    if text == "off" or (text == "auto" and len(usable) < 2):  # noqa: PLR2004 - one for each
        return Pin()
    if text == "auto":
        half = len(usable) // 2
        return Pin(server=usable[:half], client=usable[half:])
    try:
        own = list(parse_cpus(text))
    except ValueError as error:
        raise UsageError(f"--pin {text}: {error}") from None
    if bad := unusable(own):
        raise UsageError(f"--pin {text}: not usable here: {render_cpus(bad)}")
    others = [cpu for cpu in usable if cpu not in own]
    if not others:
        raise UsageError(f"--pin {text}: no CPU is left to the clients")
    return Pin(server=own, client=others)


def describe_pin(pin: Pin) -> str:
    """Return it in words; empty when nothing is pinned."""
    if not pin.server:
        return ""
    return f"servers on CPU {render_cpus(pin.server)}, clients on {render_cpus(pin.client)}"
