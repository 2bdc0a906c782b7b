"""Puts in order what this process has inherited from whoever started it.

What a process begins with, and what becomes of it here:

    signal mask         set: nothing is blocked but what waits for handlers (`signals`)
    dispositions        default, also where ignored: CHLD above all; INT, QUIT and TSTP that are
                        ignored stay so in the foreground, where a terminal could send them
                        (`signals.take_over`); PIPE and XFSZ are ignored, as CPython does it
    interval timers     cleared: alarm(2) and setitimer(2) go on through exec, and ALRM would kill
    standard streams    0, 1 and 2 are opened where they are closed (`daemonize`)
    other descriptors   sockets of the service manager are taken (`sd_daemon`); detached, strays are
                        closed; a worker keeps what it needs and nothing else (`children`)
    umask               the setting `umask`, whatever it was (`daemonize`)
    directory           relative names start there, by its name (`start_directory`); a detached
                        daemon leaves it for "/"; an upgrade does without when it has gone
    open files, cores   the settings `max_files` and `core_dumps` (`rlimits`)
    environment         the master's own, for reloads and upgrades; workers keep a few names of it
    session keyring,    the master's own; workers of root get a new keyring, and give up every
    capabilities        capability that they could have (`privileges`)

Kept, as whoever starts a daemon may mean them: other limits (file size, memory, processes), the OOM
score, nice and scheduling, the CPUs, the cgroup, namespaces, seccomp filters and no_new_privs.
Workers inherit those from the master.
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
    """Put signals and timers in order; called once, before anything is waited for."""
    signals.take_over(successor=STATE_FD in os.environ and PREFLIGHT not in os.environ)
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0.0)


def start_directory() -> Path:
    """Return the directory in which the daemon was started, by the name that was used for it.

    $PWD, where it leads here, keeps the links of that name: with /srv/app/current, which a
    deployment switches from one release to the next, an upgrade finds the new release.

    Raises:
        ResourceError: it has gone, and nobody knows its name.

    """
    if (lost := os.environ.get(LOST_DIRECTORY)) is not None:
        return Path(lost)
    named = os.environ.get("PWD", "")
    try:
        here = Path().stat()
        if named.startswith("/") and os.path.samestat(here, Path(named).stat()):
            return Path(named)
    except OSError:
        pass  # told by getcwd(2), if that has no better answer
    try:
        return Path.cwd()
    except OSError as error:
        if named.startswith("/"):
            return Path(named)
        raise ResourceError(f"the current directory: {reason_of(error)}") from error
