"""The errors that end a program, each with its exit code.

The codes follow sysexits.h where it has one; cli/README.md lists them all.
"""

import errno
import os
import traceback
from pathlib import Path
from typing import ClassVar, Final

_LASTING = frozenset({
    errno.EACCES, errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.EMLINK,
    errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EPERM,
})  # fmt: skip
"""Errors that mean that a path is wrong, or was not prepared: they do not pass by themselves."""

_PACKAGES: Final = {"daemon": "python-daemon", "hdrh": "hdrhistogram"}
"""Names of packages that differ from the name of their module."""
_BENCH: Final = frozenset({"hdrhistogram", "jinja2", "matplotlib", "psutil", "scipy", "uvloop"})
"""The packages of the extra `bench`, which only measuring needs."""


class GreeterdError(Exception):
    """A failure that ends a program: one line for the user, and `exit_code` as its exit status."""

    exit_code: ClassVar[int] = 70


class UsageError(GreeterdError):
    """The command line is wrong."""

    exit_code = 2


class ListenError(GreeterdError):
    """An address cannot be listened on (EX_UNAVAILABLE)."""

    exit_code = 69


class MissingPackageError(GreeterdError):
    """A package that this program imports is not installed (EX_UNAVAILABLE)."""

    exit_code = 69

    def __init__(self, module: str) -> None:
        name = _PACKAGES.get(module, module)
        extra = "'greeterd[bench]'" if name in _BENCH else "greeterd"
        super().__init__(f"{name} is not installed: pip install {extra}")


class StartError(GreeterdError):
    """The daemon, or its new image, cannot start to serve (EX_SOFTWARE)."""

    exit_code = 70


class ResourceError(GreeterdError):
    """The system is short of space or descriptors, or refuses a call; may pass (EX_OSERR)."""

    exit_code = 71


class OutputError(GreeterdError):
    """Standard output cannot be written (EX_IOERR)."""

    exit_code = 74


class AlreadyRunningError(GreeterdError):
    """Another daemon holds the run lock (EX_TEMPFAIL)."""

    exit_code = 75


class ConfigError(GreeterdError):
    """The configuration is wrong (EX_CONFIG)."""

    exit_code = 78


class NoReaderError(OutputError):
    """The reader of standard output has closed it: 128 + SIGPIPE, as a shell reports it."""

    exit_code = 141


def reason_of(error: OSError) -> str:
    """Return the reason of a system error, with its path if it has one: `PATH: No space left`."""
    reason = error.strerror or str(error) or type(error).__name__
    return reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"


def refusal(what: str, error: OSError, path: Path | None = None) -> GreeterdError:
    """Return a ConfigError where the path is wrong, else a ResourceError.

    `path` is named where the system error names none.
    """
    kind = ConfigError if error.errno in _LASTING else ResourceError
    if error.filename is None and path is not None:
        error = OSError(error.errno, error.strerror, str(path))
    return kind(f"{what}{':' if error.filename is None else ''} {reason_of(error)}")


def failure_of(error: GreeterdError | OSError) -> GreeterdError:
    """Return the error that a program ends with; a system error becomes a ResourceError.

    Where the system error names no path, the source line that made the call is named instead.
    """
    if isinstance(error, GreeterdError):
        return error
    reason = reason_of(error)
    if error.filename is None and (frames := traceback.extract_tb(error.__traceback__)):
        reason += f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return ResourceError(reason)
