"""A greeting server on asyncio's streams: start_server() in each of N processes.

Streams are what the library's documentation offers for programs (protocols are for libraries).  The
log is written in the loop, before the connection is closed: one short write(2) a greeting.
"""

import asyncio
import signal
import sys
from itertools import count
from typing import Final

from greeterd.bench.peers.fleet import (
    BACKLOG,
    CLIENT_TIMEOUT,
    MOST_BYTES,
    Seat,
    client_of,
    main,
    name_of,
    open_listener,
    open_log,
)

LAST_TURNS: Final = 5
"""Turns of the loop after which each accepted connection has its task."""


async def _read(reader: asyncio.StreamReader) -> bytes:
    data = bytearray()
    while len(data) < MOST_BYTES and (more := await reader.read(MOST_BYTES - len(data))):
        data += more
    return bytes(data)


async def work(seat: Seat) -> None:
    """Be a worker, on whichever loop this runs."""
    log = open_log(seat)
    numbers = count(1)
    tasks: set[asyncio.Task[None]] = set()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CLIENT_TIMEOUT):
                data = await _read(reader)
            if name := name_of(data):
                log.info(
                    "greeting",
                    greeting=f"Hello, {name}",
                    name=name,
                    seq=next(numbers),
                    client=client_of(writer.get_extra_info("peername")),
                )
        except OSError:  # a reset, or the time is up
            pass
        finally:
            writer.close()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # start_server() keeps no reference to the tasks that it makes of coroutines itself.
        task = asyncio.create_task(greet(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    server = await asyncio.start_server(begin, sock=open_listener(seat), backlog=BACKLOG)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    seat.ready()
    await told.wait()
    server.close()
    for _ in range(LAST_TURNS):
        await asyncio.sleep(0)
    if tasks:
        await asyncio.wait(tasks)


def serve(seat: Seat) -> None:
    """Be a worker on asyncio's own loop."""
    asyncio.run(work(seat))


if __name__ == "__main__":
    sys.exit(main(serve, "asyncio"))
