"""Decides who a worker becomes, and becomes it for good.

Invariants: names are looked up (`resolve`) before anything is dropped, because the name service
may be out of reach afterwards. `drop` is called once, in each worker, after it has opened its
listeners and before it opens its log. What `drop` did is proved, not assumed.
A worker has one group: what files it may write does not hang on who is in which group of the
machine, nor on the groups of the shell that has started the daemon.
The kernel makes a process that changed its user not dumpable (prctl(2), PR_SET_DUMPABLE); that is
left so: siblings of the same user cannot ptrace it.
"""

import ctypes
import errno
import grp
import os
import pwd
from contextlib import suppress
from pathlib import Path

from greeterd.errors import ConfigError, GreeterdError, refusal
from greeterd.files import ROOT, Identity, acting_as, make_directory

PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h


def resolve(user: str | None, group: str | None) -> Identity | None:
    """Look up names or numbers; None when neither is given: the daemon stays who it is.

    `group` replaces the user's own group; alone it keeps the user.

    Raises: ConfigError naming what is unknown, or a number of a user without an entry and
    without `group`, whose group cannot be known.
    """
    if user is None and group is None:
        return None
    gid = None if group is None else _find_gid(group)
    entry = _find_user(str(os.geteuid()) if user is None else user)
    if isinstance(entry, pwd.struct_passwd):
        return Identity(entry.pw_uid, entry.pw_gid if gid is None else gid)
    if gid is None:
        raise ConfigError(f"user {user} has no entry in the user database: set a group too")
    return Identity(entry, gid)


def drop(identity: Identity | None) -> None:
    """Become `identity` (None: stay) for good, without groups, and renounce privileges by exec.

    Without root the only identity that can be had is the own one, which costs nothing. The
    supplementary groups are kept where the kernel does not let us leave them: without CAP_SETGID,
    or in a user namespace that denies it.

    Raises: ConfigError when not root and `identity` is another; GreeterdError when the kernel
    let something through (never run on half-dropped).
    """
    # First: without root neither the groups nor the group could be set.
    with suppress(PermissionError):
        os.setgroups([])
    if identity is not None:
        _become(identity)
    _set_no_new_privs()


def prepare_directory(path: Path, identity: Identity | None, mode: int) -> None:
    """Make sure that `path` is a directory in which `identity` (None: we) may create files.

    A missing one is made with its parents, see `make_directory`. An existing one is left as it is:
    with `log_dir = "/var/log"` chowning it would give the whole system's logs away.

    Raises:
        ConfigError: it cannot be made or written.
        ResourceError: the same, for a reason that may pass.

    """
    try:
        if not path.is_dir():
            make_directory(path, identity, mode)
        writable = _may_write(path, identity)
    except OSError as error:
        raise refusal("directory", error) from error
    if not writable:
        raise ConfigError(f"directory {path}: is not writable by {identity or 'us'}")


def _may_write(path: Path, identity: Identity | None) -> bool:
    # The kernel is asked in the identity's place: it knows access lists and the directories above,
    # which mode bits alone do not tell.
    with acting_as(identity):
        writable = os.access(path, os.W_OK | os.X_OK, effective_ids=True)
        if writable or not os.access(path, os.X_OK, effective_ids=True):
            return writable
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
    return False


def _find_user(user: str) -> pwd.struct_passwd | int:
    try:
        return pwd.getpwuid(int(user)) if _is_number(user) else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        if _is_number(user) and int(user) < 2**32 - 1:  # (uid_t) -1 means "unchanged"
            return int(user)
        raise ConfigError(f"unknown user: {user}") from None


def _find_gid(group: str) -> int:
    if _is_number(group) and int(group) < 2**32 - 1:
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f"unknown group: {group}") from None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _become(identity: Identity) -> None:
    if os.geteuid() == ROOT:
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
        _prove(identity)
    elif (identity.uid, identity.gid) != (os.geteuid(), os.getegid()):
        raise ConfigError(f"only root can become another user ({identity})")


def _prove(identity: Identity) -> None:
    uids, gids = {identity.uid}, {identity.gid}
    kept = set(os.getresuid()) != uids or set(os.getresgid()) != gids
    if kept or os.getgroups():
        raise GreeterdError(f"privileges were not dropped completely to {identity}")
    if identity.uid == ROOT:
        return
    with suppress(PermissionError):
        os.setresuid(ROOT, ROOT, ROOT)  # CAP_SETUID would let this through
        raise GreeterdError(f"root could be regained after becoming {identity}")


def _set_no_new_privs() -> None:
    # prctl(2) is variadic: unsigned long must be passed as such, and unused ones as 0.
    libc = ctypes.CDLL(None, use_errno=True)
    one, zero = ctypes.c_ulong(1), ctypes.c_ulong(0)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, one, zero, zero, zero) != 0:
        raise GreeterdError(f"PR_SET_NO_NEW_PRIVS: {os.strerror(ctypes.get_errno())}")
