"""Resets what this process has inherited from its parent: signals, timers, the directory.

What a process begins with, and where it is handled:

    signal mask         set: nothing is blocked but what waits for handlers (`signals`)
    dispositions        default, also where ignored: CHLD above all; INT, QUIT and TSTP that are
                        ignored stay so in the foreground, where a terminal could send them
                        (`signals.take_over`); PIPE and XFSZ are ignored, as CPython does it
    interval timers     cleared: alarm(2) and setitimer(2) go on through exec, and ALRM would kill
    standard streams    0, 1 and 2 are opened where they are closed (`daemonize`)
    other descriptors   sockets of the service manager are taken (`sd_daemon`); a detached daemon
                        closes all others; a worker keeps what it needs (`master.children`)
    umask               replaced by the setting `umask` (`daemonize`)
    directory           relative paths start there, by its name (`start_directory`); a detached
                        daemon changes to "/"; an upgrade works without it when it was removed
    open files, cores   the settings `max_files` and `core_dumps` (`rlimits`)
    environment         the master's own, for reloads and upgrades; workers keep a few names of it
    session keyring,    the master's own; workers of root get a new keyring, and give up every
    capabilities        capability that they could have (`privileges`)

Kept, since the parent may intend them: other limits (file size, memory, processes), the OOM score,
nice and scheduling, the CPUs, the cgroup, namespaces, seccomp filters and no_new_privs. Workers
inherit those from the master.
"""

import os
import signal
from pathlib import Path
from typing import Final

from greeterd.errors import ResourceError, reason_of
from greeterd.system import signals

STATE_FD: Final = "_GREETERD_ESTATE"
"""The variable with the descriptor of the upgrade state, for a new image (`master/upgrade`)."""
PREFLIGHT: Final = "_GREETERD_TRIAL"
"""The variable that is set when a new image is only to show that it could start."""
LOST_DIRECTORY: Final = "_GREETERD_DIRECTORY"
"""The variable with the directory in which the daemon was started, for a new image, when that
directory cannot be entered any more."""


def take_over() -> None:
    """Reset signals and timers; call it once, before anything that may block."""
    signals.take_over(successor=STATE_FD in os.environ and PREFLIGHT not in os.environ)
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0.0)


def start_directory() -> Path:
    """Return the directory in which the daemon was started, by the name that was used for it.

    $PWD, where it leads here, keeps the links of that name: with /srv/app/current, which a
    deployment switches from one release to the next, an upgrade finds the new release.

    Raises:
        ResourceError: it was removed, and its name is unknown.

    """
    if (lost := os.environ.get(LOST_DIRECTORY)) is not None:
        return Path(lost)
    named = os.environ.get("PWD", "")
    try:
        here = Path().stat()
        if named.startswith("/") and os.path.samestat(here, Path(named).stat()):
            return Path(named)
    except OSError:
        pass  # getcwd(2) below reports it, unless it has a better answer
    try:
        return Path.cwd()
    except OSError as error:
        if named.startswith("/"):
            return Path(named)
        raise ResourceError(f"the current directory: {reason_of(error)}") from error
