"""The same job done by what a user would write instead, and by two programs in C.

Each is started by `command` and says `ready ADDRESS` on standard output when all workers accept.
SIGTERM lets it finish what it has accepted and exit 0.  It ends with the process that started it.
"""

import sys
from array import array
from pathlib import Path
from typing import Final

from greeterd.bench.extras import require
from greeterd.bench.model import Case
from greeterd.bench.peers.compiled import COMPILED, build
from greeterd.errors import GreeterdError

__all__ = ["COMPILED", "MODES", "PEERS", "SCRIPTED", "build", "command", "counts"]

SCRIPTED: Final = ("socketserver", "asyncio", "uvloop")
PEERS: Final = (*SCRIPTED, *COMPILED)
MODES: Final = ("inherit", "reuseport")

_CELL: Final = 8
"""Of `bare`: a worker's count is followed by seven empty cells, so that none share a cache line."""


def command(case: Case, log_dir: Path, build_dir: Path) -> list[str]:
    """Return the command that serves a case on a free port of 127.0.0.1; compile it if need be.

    Raises:
        GreeterdError: the case has a server or a mode that is no peer's, or something is missing.

    """
    if case.server not in PEERS:
        raise GreeterdError(f"{case.server} is no peer: there are {', '.join(PEERS)}")
    if case.mode not in MODES:
        raise GreeterdError(
            f"{case.server} has no mode {case.mode}: peers have {' and '.join(MODES)}"
        )
    log_dir.mkdir(parents=True, exist_ok=True)
    if case.server in COMPILED:
        program = str(build(case.server, build_dir))
        work = [str(case.work)] if case.work else []
        return [program, "0", str(case.workers), case.mode, str(log_dir), *work]
    require(case.server)
    module = f"greeterd.bench.peers.{case.server}"
    arguments = {"bind": "127.0.0.1:0", "workers": case.workers, "log-dir": log_dir}
    flags = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", module, *flags, "--mode", case.mode]


def counts(log_dir: Path) -> list[int]:
    """Return the greetings of each worker that has greeted: its log's lines, or `bare`'s counts."""
    cells = log_dir / "count"
    if cells.exists():
        return list(array("Q", cells.read_bytes())[::_CELL])
    logs = sorted(log_dir.glob("worker-*.log"), key=lambda path: int(path.stem.split("-")[1]))
    return [path.read_bytes().count(b"\n") for path in logs]
