"""Commands that start a daemon as parents do which have arranged things: prefixes for Daemon.

Each is a program that changes its own state and then executes what follows, so the pid is kept.
"""

import os
import sys

SYSCALLS = {
    "x86_64": {
        "add_key": 248, "epoll_create1": 291, "keyctl": 250, "memfd_create": 319, "pidfd_open": 434,
        "prlimit64": 302, "sched_getaffinity": 204,
    },
    "aarch64": {
        "add_key": 217, "epoll_create1": 20, "keyctl": 219, "memfd_create": 279, "pidfd_open": 434,
        "prlimit64": 261, "sched_getaffinity": 123,
    },
}  # fmt: skip
"""Numbers of system calls by machine."""

FILTER = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
def jump(code, true, false, k): return struct.pack("HBBI", code, true, false, k)
refuse = jump(0x06, 0, 0, 0x00050001)  # BPF_RET: SECCOMP_RET_ERRNO | EPERM
allow = jump(0x06, 0, 0, 0x7FFF0000)
# BPF_LD of the number, BPF_JEQ for each that is refused
program = jump(0x20, 0, 0, 0)
for number in NUMBERS:
    program += jump(0x15, 0, 1, number) + refuse
program += allow
code = ctypes.create_string_buffer(program, len(program))
fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, fprog, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP, a filter
"""


def after(code: str) -> tuple[str, ...]:
    """Return the prefix that runs some code, and then executes the command."""
    head = "import os, signal, sys\n"
    return sys.executable, "-c", f"{head}{code}\nos.execvp(sys.argv[1], sys.argv[1:])"


def refusing(*calls: str) -> tuple[str, ...] | None:
    """Return the prefix of a parent whose filter refuses system calls; None where none can be."""
    numbers = SYSCALLS.get(os.uname().machine)
    if numbers is None:
        return None
    return after(f"NUMBERS = {[numbers[call] for call in calls]}\n{FILTER}")
