"""The program `greeterd`: argv -> Config -> run.

Exit codes are those of `greeterd.errors`; an error is one line on standard error. Heavy modules are
imported when they are needed, so that `--version`, `--help` and `--check` are quick, and work where
a package that they do not use is missing.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from greeterd import __version__
from greeterd.cli.program import run_program
from greeterd.errors import GreeterdError
from greeterd.system import inheritance

if TYPE_CHECKING:  # see _run
    from greeterd.config.loader import Loaded
    from greeterd.config.schema import Config

OLDEST_LINUX: Final = (4, 5)
"""EPOLLEXCLUSIVE, and classic BPF for reuseport sockets (epoll_ctl(2), socket(7))."""


def main() -> int:
    """Run the program; return its exit code."""
    # Before anything blocks: the signals that end a wait may be inherited as blocked or ignored.
    inheritance.take_over()
    return run_program("greeterd", lambda: _run(sys.argv[1:], dict(os.environ)))


def _run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    if "--version" in argv:
        print(f"greeterd {__version__}")
        return 0
    system = os.uname()
    reason = unsupported(system.sysname, system.release)
    if reason:
        raise GreeterdError(reason)

    from greeterd.config import loader  # noqa: PLC0415  # 0.1 s of cyclopts

    if argv[:1] == [loader.COMPLETION]:
        loader.install_completion(argv)
        return 0
    if {"--help", "-h"} & set(argv) or argv == ["help"]:
        loader.print_help()
        return 0
    directory = inheritance.start_directory()
    again = partial(loader.load, argv, environ, directory=directory, uid=os.geteuid())
    loaded = again()
    if loaded.check:
        print(loader.to_toml(loaded))
        return 0

    from greeterd.master.start import run  # noqa: PLC0415  # --check and --help need none of it

    return run(
        loaded.config,
        directory=directory,
        reload=_reread(again, loaded),
        config_file=loaded.file,
    )


def _reread(again: Callable[[], "Loaded"], latest: "Loaded") -> "Callable[[], Config]":
    """Return a function that loads the configuration again, for reloads.

    A file that has not changed is not parsed again: that takes 15 ms of CPU time, in which the
    master does nothing else.
    """
    from greeterd.config.file import read_file  # noqa: PLC0415  # see _run

    def reread() -> "Config":
        nonlocal latest
        try:
            content = None if latest.file is None else read_file(latest.file)
            if content in {None, latest.content}:
                return latest.config
        except GreeterdError:
            pass  # `again` raises it with its source
        latest = again()
        return latest.config

    return reread


def unsupported(system: str, release: str) -> str | None:
    """Return why the daemon cannot run here, None if it can."""
    found = re.match(r"(\d+)\.(\d+)", release)
    if system == "Linux" and found and (int(found[1]), int(found[2])) >= OLDEST_LINUX:
        return None
    oldest = ".".join(map(str, OLDEST_LINUX))
    return f"greeterd needs Linux {oldest} or newer, this is {system} {release}"
