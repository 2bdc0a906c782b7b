"""Drops a worker's privileges for good: user, groups, capabilities, keyring.

Invariants: names are looked up (`resolve`) before anything is dropped, because the name service
may be out of reach afterwards. `drop` is called once, in each worker, after it has opened its
listeners and before it opens its log. The result of `drop` is verified, not assumed.
A worker has one group: which files it may write depends neither on the group database of the
machine, nor on the groups of the shell that has started the daemon.

Dropped from root: groups, user, every capability of every set (the bounding set first, while that
is allowed), the session keyring with root's keys, and the right of siblings to trace the worker. A
worker that stays root, because no user is set, keeps its capabilities, but not the bounding set:
programs that it executes do not get them. A step that a seccomp filter or a missing capability (in
a container) forbids is left out; no_new_privs never is.
Not started by root, workers run as the master's user, and there is no boundary between them.
"""

import ctypes
import grp
import os
import pwd
import struct
from collections.abc import Callable
from contextlib import suppress

from greeterd.errors import ConfigError, GreeterdError
from greeterd.system.files import ROOT, Identity

PR_SET_DUMPABLE = 4  # linux/prctl.h, as the next ones
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
KEYCTL_JOIN_SESSION_KEYRING = 1  # linux/keyctl.h
KEYCTL = {
    "x86_64": 250, "aarch64": 219, "riscv64": 219, "loongarch64": 219, "ppc64le": 271, "s390x": 280,
}  # fmt: skip
"""keyctl(2) by machine, for programs of 64 bits; glibc has no function for it."""

_CAPABILITY_HEADER = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)  # 0: this process
_LIBC = ctypes.CDLL(None, use_errno=True)


def resolve(user: str | None, group: str | None) -> Identity | None:
    """Look up names or numbers; None when neither is given: the daemon keeps its identity.

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


def is_root(identity: Identity | None) -> bool:
    """Return whether a worker of this identity is root (None: the identity of this process)."""
    return (os.geteuid() if identity is None else identity.uid) == ROOT


def drop(identity: Identity | None, *, traceable: bool = False) -> None:
    """Become `identity` (None: stay) for good, without groups and without privileges by exec.

    Without root, only the own identity is possible, and nothing changes. Supplementary groups stay
    where setgroups(2) is not allowed: without CAP_SETGID, or in a user namespace that denies it.
    `traceable`: a crash of a worker that was root may leave a core file, and siblings may trace it.

    Raises: ConfigError when not root and `identity` is another; GreeterdError when privileges were
    not dropped completely: the caller must not go on.
    """
    was_root = os.geteuid() == ROOT
    # First: without root neither the groups nor the group could be set.
    with suppress(PermissionError):
        os.setgroups([])
    if was_root:
        _leave_keyring()  # while root: the new one counts against the quota of root's keys
        _empty_bounding_set()
    if identity is not None:
        _become(identity)
    stays_root = os.geteuid() == ROOT
    _empty_capabilities(stays_root=stays_root)
    if was_root and identity is not None:
        _prove(identity)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    if was_root:
        # The kernel has set it to fs.suid_dumpable at the change of user, and that need not be 0.
        _prctl(PR_SET_DUMPABLE, int(traceable))


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
    elif (identity.uid, identity.gid) != (os.geteuid(), os.getegid()):
        raise ConfigError(f"only root can become another user ({identity})")


def _prove(identity: Identity) -> None:
    uids, gids = {identity.uid}, {identity.gid}
    kept = set(os.getresuid()) != uids or set(os.getresgid()) != gids
    if kept or os.getgroups():
        raise GreeterdError(f"privileges were not dropped completely to {identity}")
    if identity.uid == ROOT:
        return
    if any(_capabilities()):
        raise GreeterdError(f"capabilities were kept after becoming {identity}")
    with suppress(PermissionError):
        os.setresuid(ROOT, ROOT, ROOT)  # CAP_SETUID would let this through
        raise GreeterdError(f"root could be regained after becoming {identity}")


def _prctl(option: int, argument: int) -> None:
    """Call prctl(2).  Raises: GreeterdError: the kernel refuses."""
    if reason := _refused(_LIBC.prctl, option, argument, 0, 0, 0):
        raise GreeterdError(f"prctl({option}, {argument}): {reason}")


def _empty_bounding_set() -> None:
    capability = 0
    while not _refused(_LIBC.prctl, PR_CAPBSET_DROP, capability, 0, 0, 0):
        capability += 1  # until no capability has this number, or CAP_SETPCAP is missing


def _empty_capabilities(*, stays_root: bool) -> None:
    """Empty the ambient and the inheritable set, and unless root the others too.

    The kernel empties those at a change of user, unless securebits(7) say otherwise.
    """
    _refused(_LIBC.prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    sets = [0] * 6
    if stays_root:
        sets = _capabilities()
        sets[2] = sets[5] = 0
    _refused(_LIBC.capset, _CAPABILITY_HEADER, struct.pack("=6I", *sets))


def _capabilities() -> list[int]:
    """Return the effective, permitted and inheritable set: the low 32 bits of each, then the high.

    All are 0 where capget(2) is not allowed.
    """
    data = ctypes.create_string_buffer(24)
    _refused(_LIBC.capget, _CAPABILITY_HEADER, data)
    return list(struct.unpack("=6I", data))


def _leave_keyring() -> None:
    """Join a new, empty session keyring, session-keyring(7), where the call's number is known."""
    number = KEYCTL.get(os.uname().machine)
    if number is not None and struct.calcsize("P") == 8:  # noqa: PLR2004 - bytes of 64 bits
        _refused(_LIBC.syscall, number, KEYCTL_JOIN_SESSION_KEYRING, 0)


def _refused(
    call: Callable[..., int], *arguments: int | bytes | ctypes.Array[ctypes.c_char]
) -> str:
    """Call the kernel; return why it refuses, or an empty text.

    prctl(2) and syscall(2) are variadic: numbers must be passed as long.
    """
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return os.strerror(ctypes.get_errno()) if call(*words) == -1 else ""
