"""Scale-down and the final stop over a link with delay, where handshakes are in flight.

The tests run it small. By hand, also with losses:
`python -m tests.system.slow_link --mode reuseport --removals 15 --loss 0.02`
"""

import argparse
import signal
import time
from collections import Counter
from dataclasses import dataclass

from tests.system.clients import Load, LoadResult
from tests.system.harness import Daemon
from tests.system.link import SERVER, Link

WORKERS = 4
ONE_WAY = 0.02
PLAIN = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the clients, and how long the stop took; the stop `began` at an instant."""

    clients: LoadResult
    began: float
    stop_took: float
    exit_code: int
    unlogged: int
    """Served clients without a record of their own."""

    @property
    def failed(self) -> dict[str, int]:
        """The clients that had connected, or came before the stop, and were not served."""
        return self.clients.lost_by_stop(self.began)


def scale_down_and_stop(
    mode: str,
    *,
    removals: int,
    loss: float = 0.0,
    grace: float | None = None,
    plain: bool = False,
) -> Outcome:
    """Take workers away one by one, as often as told, and stop at last, all under load.

    The daemon of a `plain` user may not attach every sort of filter to its listeners.
    """
    arguments = ["--bind", f"{SERVER}:0", "--mode", mode, "--workers", str(WORKERS), "--reply"]
    if grace is not None:
        arguments += ["--drain-grace", str(grace)]
    with (
        Link(delay=ONE_WAY, loss=loss) as link,
        Daemon(*arguments, prefix=(*link.server_prefix, *(PLAIN if plain else ()))) as server,
        Load(
            server.address,
            count=10_000_000,
            concurrency=64,
            timeout=30.0,
            reply=True,
            prefix=link.client_prefix,
        ) as load,
    ):
        load.wait_going()
        for number in range(1, removals + 1):
            remove_one(server)
            if number % (WORKERS - 1) == 0:
                assert server.ctl("scale", str(WORKERS)).returncode == 0
        began = time.monotonic()
        code = server.stop(timeout=60.0)
        took = time.monotonic() - began
        result = load.stop()
        logged = Counter(one["name"] for one in server.greetings())
    missing = sum((Counter(result.names["ok"]) - logged).values())
    return Outcome(result, began, took, code, missing)


def remove_one(server: Daemon) -> None:
    """Take one worker away, and wait until that is done."""
    count = len(server.events("scale done"))
    server.signal(signal.SIGTTOU)
    server.wait_event("scale done", count=count + 1, timeout=60.0)


def main() -> None:
    """Print what became of the clients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=["inherit", "reuseport", "handoff"], default="reuseport")
    parser.add_argument("--removals", type=int, default=15)
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets, each way")
    parser.add_argument("--grace", type=float, help="drain_grace of the daemon, seconds")
    parser.add_argument("--plain", action="store_true", help="without CAP_NET_ADMIN")
    outcome = scale_down_and_stop(**vars(parser.parse_args()))
    print(f"clients {outcome.clients.counts}, slowest {outcome.clients.slowest:.2f} s")
    print(f"failed {outcome.failed}, served without a record {outcome.unlogged}")
    print(f"stopped in {outcome.stop_took:.2f} s with {outcome.exit_code}")


if __name__ == "__main__":
    main()
