"""Removes the master's environment from a worker: secrets are passed in variables.

A worker executes nothing and reads no variable but those of the zone and the language. Two copies
are removed: the variables themselves, and the block in which the kernel passed them, which
/proc/PID/environ shows. Copies elsewhere in the forked memory stay: only exec(2) would end those.
"""

import ctypes
import os
from pathlib import Path
from typing import Final

KEPT: Final = ("PATH", "TZ", "LANG", "LANGUAGE", "LC_")
"""Names; the last one is a prefix."""
_BLOCK: Final = slice(47, 49)
"""env_start and env_end of proc_pid_stat(5), counted from the third field on."""


def reduce_environment() -> None:
    """Remove all variables but KEPT; called once, in a worker."""
    *names, prefix = KEPT
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in names or name.startswith(prefix)
    }
    os.environ.clear()
    # No variable points into the block any more: what is set from here on has memory of its own.
    _overwrite(b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in kept.items()))
    os.environ.update(kept)


def _overwrite(content: bytes) -> None:
    """Overwrite the block that the kernel made; without /proc it stays as it is."""
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return
    start, end = map(int, fields[_BLOCK])
    if 0 < start < end:
        size = end - start
        ctypes.memmove(start, content[:size].ljust(size, b"\0"), size)
