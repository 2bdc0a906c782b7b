"""Default directories: where logs, the pid file and the control socket are if nothing is set.

greeterctl finds the daemon of its user by the same rules.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from greeterd.config.schema import Config

_DEFAULTS = Config()


class Directory(NamedTuple):
    """A directory, and the variable that it comes from, if one is set."""

    path: str
    variable: str | None = None


def default_log_dir(environ: Mapping[str, str]) -> Directory:
    """Return the directory of logs where `log_dir` is not set."""
    return _unit_directory("LOGS_DIRECTORY", environ) or Directory(str(_DEFAULTS.log_dir))


def default_run_dir(environ: Mapping[str, str], uid: int) -> Directory:
    """Return the run directory of a daemon that this user starts, where `run_dir` is not set."""
    given = _unit_directory("RUNTIME_DIRECTORY", environ)
    if given is not None:
        return given
    variable = "XDG_RUNTIME_DIR"
    # The XDG Base Directory Specification says to ignore relative paths.
    if environ.get(variable, "").startswith("/"):
        return Directory(str(Path(environ[variable], "greeterd")), variable)
    if uid == 0:
        return Directory(str(_DEFAULTS.run_dir))
    # Any user can make a directory of this name here; `pidfile` makes sure that it is ours.
    shared = environ.get("TMPDIR") or "/tmp"  # noqa: S108  # see above
    return Directory(str(Path(shared, f"greeterd-{uid}")))


def _unit_directory(variable: str, environ: Mapping[str, str]) -> Directory | None:
    """Return the directory of a variable of systemd.exec(5), the first of those between colons."""
    first, _, _ = environ.get(variable, "").partition(":")
    return Directory(first, variable) if first else None
