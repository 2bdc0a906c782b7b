"""Looking up users, dropping to them in real processes, and making directories for them."""

import grp
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from greeterd.errors import ConfigError
from greeterd.system.files import Identity
from greeterd.system.privileges import drop, resolve

ROOT = Path(__file__).parents[3]
STRANGER = Identity(54321, 54322)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
needs_no_root = pytest.mark.skipif(os.geteuid() == 0, reason="needs a user who is not root")


def python(code: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
        timeout=30,
    )


def test_nobody_wanted_is_nobody() -> None:
    assert resolve(None, None) is None


def test_a_user_brings_his_own_group() -> None:
    me = pwd.getpwnam("nobody")
    expected = Identity(me.pw_uid, me.pw_gid)
    assert resolve(me.pw_name, None) == expected
    assert resolve(str(me.pw_uid), None) == expected


def test_a_group_replaces_the_user_s_own() -> None:
    nobody = pwd.getpwnam("nobody")
    mail = grp.getgrnam("mail")
    found = resolve("nobody", "mail")
    assert found
    assert (found.uid, found.gid) == (nobody.pw_uid, mail.gr_gid)
    assert resolve("nobody", str(mail.gr_gid)) == found


def test_a_group_alone_keeps_the_user() -> None:
    found = resolve(None, "mail")
    assert found
    assert (found.uid, found.gid) == (os.geteuid(), grp.getgrnam("mail").gr_gid)


def test_a_number_needs_no_entry_if_the_group_is_given() -> None:
    assert resolve("54321", "54322") == Identity(54321, 54322)
    with pytest.raises(ConfigError, match=r"user 54321 has no entry .*: set a group too"):
        resolve("54321", None)


@pytest.mark.parametrize(
    ("user", "group", "reason"),
    [
        ("no-such-user", None, "unknown user: no-such-user"),
        ("nobody", "no-such-group", "unknown group: no-such-group"),
        ("4294967295", "0", "unknown user: 4294967295"),  # (uid_t) -1: "unchanged"
        ("0", "4294967295", "unknown group: 4294967295"),
        ("9" * 30, "0", "unknown user: 999"),
        ("-1", "0", "unknown user: -1"),
        ("", None, "unknown user: $"),
    ],
)
def test_what_is_unknown_is_named(user: str, group: str | None, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        resolve(user, group)


DROP = """
import os, sys
from greeterd.system.privileges import Identity, drop
os.setgroups([0, 4])
drop(Identity(54321, 54322))
print(os.getresuid(), os.getresgid(), sorted(os.getgroups()))
for name in ("setuid", "seteuid", "setgid"):
    try:
        getattr(os, name)(0)
    except PermissionError:
        print(name, "refused")
print(*[line.split()[1] for line in open("/proc/self/status") if line.startswith("NoNewPrivs")])
"""


@needs_root
def test_root_drops_everything_and_cannot_come_back() -> None:
    done = python(DROP)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "(54321, 54321, 54321) (54322, 54322, 54322) []",
        "setuid refused",
        "seteuid refused",
        "setgid refused",
        "1",
    ]


KEEP_SETUID = """
import ctypes, os
from greeterd.errors import GreeterdError
from greeterd.system import privileges
from greeterd.system.privileges import Identity, drop
privileges._empty_capabilities = lambda **_: None  # as where a filter refuses capset(2)
PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP = 28, 4
assert ctypes.CDLL(None).prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) == 0
try:
    drop(Identity(54321, 54322))
except GreeterdError as error:
    print(error)
"""


REGAINED = "capabilities were kept after becoming uid 54321, gid 54322\n"


@needs_root
def test_a_drop_that_can_be_undone_is_an_error() -> None:
    """With this secure bit the capabilities survive the change of the user."""
    assert python(KEEP_SETUID).stdout == REGAINED


STAY = """
import os
from greeterd.system.privileges import drop
{before}
drop(None)
print(os.getresuid(), os.getgroups())
print(*[line.split()[1] for line in open("/proc/self/status") if line.startswith("NoNewPrivs")])
"""


@needs_root
def test_who_stays_root_leaves_his_groups_and_renounces_exec_all_the_same() -> None:
    done = python(STAY.format(before="os.setgroups([0, 4])"))
    assert (done.stdout, done.stderr) == ("(0, 0, 0) []\n1\n", "")


@needs_root
def test_who_may_not_leave_his_groups_keeps_them() -> None:
    done = python(STAY.format(before="os.setgroups([4]); os.setresuid(54321, 54321, 54321)"))
    assert (done.stdout, done.stderr) == ("(54321, 54321, 54321) [4]\n1\n", "")


@needs_root
def test_root_may_stay_root() -> None:
    code = "from greeterd.system.privileges import *; drop(Identity(0, 0)); print(os.getresuid())"
    assert python(code).stdout == "(0, 0, 0)\n"


AS_STRANGER = """
import os
from greeterd.errors import ConfigError
from greeterd.system.privileges import Identity, drop
os.setgroups([]); os.setresgid(54322, 54322, 54322); os.setresuid(54321, 54321, 54321)
drop(Identity(54321, 54322))
for uid, gid in ((54320, 54322), (54321, 54320), (0, 0)):
    try:
        drop(Identity(uid, gid))
    except ConfigError as error:
        print(error)
"""


@needs_root
def test_others_than_root_can_only_stay_who_they_are() -> None:
    done = python(AS_STRANGER)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "only root can become another user (uid 54320, gid 54322)",
        "only root can become another user (uid 54321, gid 54320)",
        "only root can become another user (uid 0, gid 0)",
    ]


@needs_no_root
def test_an_ordinary_user_cannot_become_another() -> None:
    with pytest.raises(ConfigError, match="only root"):
        drop(STRANGER)


SETS = """
def sets(*names):
    lines = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines()
                 if ":\\t" in line)
    return [int(lines[name], 16) for name in names]
ALL = ("CapInh", "CapPrm", "CapEff", "CapAmb")
libc = ctypes.CDLL(None, use_errno=True)
"""


@needs_root
def test_no_capability_is_kept_whatever_the_securebits_say() -> None:
    code = f"""
import ctypes
from greeterd.system.privileges import *
{SETS}
if libc.prctl(28, 4, 0, 0, 0):  # PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP
    print("SKIP")
else:
    drop(Identity(54321, 54322))
    print(sets(*ALL))
"""
    done = python(code)
    if done.stdout == "SKIP\n":
        pytest.skip("needs CAP_SETPCAP")
    assert done.stdout == "[0, 0, 0, 0]\n", done.stderr


@needs_root
def test_who_has_capabilities_without_being_root_gives_them_up() -> None:
    code = f"""
import ctypes
from greeterd.system.privileges import *
{SETS}
libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
os.setresuid(54321, 54321, 54321)
assert any(sets(*ALL))
drop(None)
print(sets(*ALL))
"""
    assert python(code).stdout == "[0, 0, 0, 0]\n"


@needs_root
def test_who_stays_root_keeps_what_he_may_do_and_nothing_for_what_he_executes() -> None:
    code = f"""
import ctypes
from greeterd.system.privileges import *
{SETS}
before = sets("CapPrm", "CapEff")
may = before[1] >> 8 & 1  # CAP_SETPCAP
drop(None)
print(sets("CapPrm", "CapEff") == before, sets("CapInh", "CapAmb"), may and sets("CapBnd"))
"""
    assert python(code).stdout in {"True [0, 0] [0]\n", "True [0, 0] 0\n"}


def test_the_environment_is_reduced_also_where_the_kernel_put_it() -> None:
    code = """
import ctypes, os
os.environ["SET"] = "later"
from greeterd.system.environment import reduce_environment
reduce_environment()
libc = ctypes.CDLL(None); libc.getenv.restype = ctypes.c_char_p
block = open("/proc/self/environ", "rb").read()
print(sorted(os.environ), libc.getenv(b"SECRET"), libc.getenv(b"SET"), libc.getenv(b"TZ"))
print([each for each in block.split(b"\\0") if each])
os.environ["LONG"] = "x" * 100_000
print(len(os.environ["LONG"]), b"xxx" in open("/proc/self/environ", "rb").read())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"SECRET": "do not tell", "TZ": "UTC", "LC_ALL": "C", "LISTEN_FDS": "1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    names, block, long = done.stdout.splitlines()
    assert names == "['LC_ALL', 'TZ'] None None b'UTC'", done.stderr
    assert sorted(eval(block)) == [b"LC_ALL=C", b"TZ=UTC"]
    assert long == "100000 False"
