"""A greeting server on uvloop: the program of `peers.asyncio`, run by uvloop.run()."""

import sys

from greeterd.bench.extras import require
from greeterd.bench.peers.asyncio import work
from greeterd.bench.peers.fleet import Seat, main


def serve(seat: Seat) -> None:
    """Be a worker on uvloop's loop.

    Raises:
        GreeterdError: uvloop is not installed.

    """
    require("uvloop")
    import uvloop  # noqa: PLC0415 - of an extra

    uvloop.run(work(seat))


if __name__ == "__main__":
    sys.exit(main(serve, "uvloop"))
