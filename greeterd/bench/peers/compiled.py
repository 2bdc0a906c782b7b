"""Builds the two servers in C: `threaded`, and `bare`, which logs nothing.

Their sources are data of the package.  A program is compiled anew when a source is newer than it.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Final

from greeterd.errors import GreeterdError

SOURCES: Final = Path(__file__).parent
COMPILED: Final = ("threaded", "bare")
COMPILERS: Final = ("cc", "gcc", "clang")
FLAGS: Final = ("-O2", "-Wall", "-Wextra", "-std=gnu11", "-pthread")


class CompilerError(GreeterdError):
    """There is no C compiler, or it failed (EX_UNAVAILABLE)."""

    exit_code = 69


def compiler() -> str | None:
    """Return the path of a C compiler, if there is one."""
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def build(name: str, directory: Path) -> Path:
    """Return the program of a server in C, compiled into `directory` (which is made) if need be.

    Raises:
        GreeterdError: there is no compiler, or it failed.

    """
    source = SOURCES / f"{name}.c"
    program = directory / name
    newest = max(path.stat().st_mtime for path in (source, SOURCES / "server.h"))
    if program.exists() and program.stat().st_mtime > newest:
        return program
    return compile_program(source, directory)


def compile_program(source: Path, directory: Path) -> Path:
    """Compile one C source into `directory`; return the program, which has the source's name.

    Raises:
        GreeterdError: there is no compiler, or it failed.

    """
    found = compiler()
    if found is None:
        raise CompilerError(
            f"no C compiler for the server {source.stem}: install gcc (Debian, Ubuntu: apt install"
            " gcc libc6-dev; Fedora: dnf install gcc), or leave out the compiled servers"
        )
    directory.mkdir(parents=True, exist_ok=True)
    program = directory / source.stem
    unfinished = program.with_suffix(".new")
    command = [found, *FLAGS, str(source), "-o", str(unfinished), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise CompilerError(f"{found} cannot compile {source.name}: {said[-1]}")
    # An interrupted compiler leaves no half of a program under the name.
    return unfinished.replace(program)
