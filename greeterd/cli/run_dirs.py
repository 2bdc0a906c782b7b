"""Finds run directories: the one of this user's daemon, and those of other daemons on this host."""

import contextlib
import os
import pwd
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from greeterd.config.directories import default_run_dir
from greeterd.control import listeners
from greeterd.system.socket_file import CONTROL_SOCKET

MAX_OTHERS: Final = 3
_USUAL: Final = re.compile(
    rf"(/run|/run/user/\d+|/tmp)/greeterd(-[\w.-]+)?/{re.escape(CONTROL_SOCKET)}", re.ASCII
)
"""Where greeterd and its units put the socket."""


def usual_run_dir(environ: Mapping[str, str], uid: int) -> Path:
    """Return the run directory that greeterd uses if this user starts it without a flag."""
    return Path(environ.get("GREETERD_RUN_DIR") or default_run_dir(environ, uid).path)


def others(usual: Path) -> list[str]:
    """Return a hint for each daemon in a default run directory, other than the `usual` one."""
    found = {path.parent for path in listeners() if _USUAL.fullmatch(str(path))} - {usual}
    hints = []
    for run_dir in sorted(found):
        with contextlib.suppress(OSError):  # of another mount namespace
            uid = run_dir.stat().st_uid
            sudo = "" if os.geteuid() in {0, uid} else "sudo "
            hints.append(f"{_name_of(uid)} runs one: {sudo}greeterctl --run-dir {run_dir}")
    return hints[:MAX_OTHERS]


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
