"""The errors that end a program, each with its exit code.

The codes follow sysexits.h where it has one; the README's table of exit codes lists them all.
"""

import os
from typing import ClassVar


class GreeterdError(Exception):
    """A failure that is told to the user in one line; `exit_code` is the process's status."""

    exit_code: ClassVar[int] = 70


class UsageError(GreeterdError):
    """The command line is wrong."""

    exit_code = 2


class ListenError(GreeterdError):
    """An address cannot be listened on (EX_UNAVAILABLE)."""

    exit_code = 69


class StartError(GreeterdError):
    """A worker of the first generation never became ready (EX_SOFTWARE)."""

    exit_code = 70


class RestartIntensityError(GreeterdError):
    """A worker died more often than `max_restarts` in `restart_window` (EX_SOFTWARE)."""

    exit_code = 70


class ResourceError(GreeterdError):
    """The system refuses what is needed, for now: space, descriptors, a call (EX_OSERR)."""

    exit_code = 71


class AlreadyRunningError(GreeterdError):
    """Another daemon holds the run lock (EX_TEMPFAIL)."""

    exit_code = 75


class ConfigError(GreeterdError):
    """The configuration is wrong (EX_CONFIG)."""

    exit_code = 78


def reason_of(error: OSError) -> str:
    """Return why the system refused, with the path if there is one: `PATH: No space left`."""
    reason = error.strerror or str(error) or type(error).__name__
    return reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"
