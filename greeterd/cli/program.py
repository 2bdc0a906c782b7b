"""Runs the body of a program: handles its errors, its exit code and its standard streams.

A failed write to standard output ends the program like any other error, whichever code writes: an
OutputError (74), or silently when the reader has closed it (141). A failed write to standard error
is ignored. So the interpreter's last flush cannot fail.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import TextIOWrapper
from typing import IO, Any, Final, TextIO, cast

from greeterd.errors import (
    GreeterdError,
    MissingPackageError,
    NoReaderError,
    OutputError,
    failure_of,
)
from greeterd.system.escape import escape

EX_INTERRUPTED: Final = 130  # 128 + SIGINT, as a shell reports it


def run_program(name: str, body: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Call `body`; return its exit code, or report the error that ended it and return its code."""
    _open_missing()
    streams = sys.stdout, sys.stderr
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale must not make output fail
    sys.stdout = cast("TextIO", _Guarded(sys.stdout, partial(_refuse, sys.stdout)))
    sys.stderr = cast("TextIO", _Guarded(sys.stderr, lambda: suppress(OSError)))
    try:
        return _settle(name, body, interrupted)
    finally:
        sys.stdout, sys.stderr = streams
        _let_go(sys.stdout)
        _let_go(sys.stderr)


def _settle(name: str, body: Callable[[], int], interrupted: str) -> int:
    try:
        code = body()
        sys.stdout.flush()
    except NoReaderError as error:
        return error.exit_code
    except GreeterdError as error:
        complain(name, str(error))
        return error.exit_code
    except KeyboardInterrupt:
        complain(name, interrupted)
        return EX_INTERRUPTED
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in {"", "greeterd"}:
            raise
        failure: GreeterdError = MissingPackageError(missing)
        complain(name, str(failure))
        return failure.exit_code
    except OSError as error:
        failure = failure_of(error)
        complain(name, str(failure))
        return failure.exit_code
    return code


def complain(name: str, message: str) -> None:
    """Write one line to standard error that begins with the program's name."""
    sys.stderr.write(f"{name}: {escape(message)}\n")
    sys.stderr.flush()


class _Guarded:
    """A stream whose write and flush run inside a context manager; all else is the stream's."""

    def __init__(self, stream: IO[Any], guard: Callable[[], Any]) -> None:
        self._stream = stream
        self._guard = guard

    def write(self, data: Any) -> int:
        with self._guard():
            self._stream.write(data)
        return len(data)

    def flush(self) -> None:
        with self._guard():
            self._stream.flush()

    @property
    def buffer(self) -> "_Guarded":
        return _Guarded(cast("TextIO", self._stream).buffer, self._guard)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _refuse(stream: TextIO) -> Iterator[None]:
    """Turn an OSError of standard output, once, into an OutputError or NoReaderError."""
    try:
        yield
    except OSError as error:
        _silence(stream)
        if isinstance(error, BrokenPipeError):
            raise NoReaderError("the reader of standard output has gone") from error
        raise OutputError(f"standard output: {error.strerror}") from error


def _open_missing() -> None:
    """Open 0, 1 and 2 where they are closed, so that no socket of ours takes the number.

    In the wrong direction, so that reading and writing there still fail (EBADF).
    """
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest number that is free: this one
            os.set_inheritable(number, True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _let_go(stream: TextIO) -> None:
    """Flush, or make sure that the interpreter's last flush succeeds."""
    try:
        stream.flush()
    except (OSError, ValueError):
        _silence(stream)


def _silence(stream: TextIO) -> None:
    """Redirect a stream to /dev/null, with what it has buffered."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
