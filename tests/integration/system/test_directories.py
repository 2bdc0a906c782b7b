"""Making directories where others may write, and they do."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from greeterd.errors import ConfigError, GreeterdError, ResourceError
from greeterd.system.directories import make_directory, prepare_directory
from greeterd.system.files import Identity, acting_as
from tests.integration.system.users import (
    ANOTHER,
    HIM,
    mode_of,
    names,
    needs_root,
    owner_of,
    seen,
)
from tests.system.sizes import sized

ROOT = Path(__file__).parents[3]


def reachable(path: Path) -> None:
    """Let everybody pass the directories above `path` that the test runner made."""
    for parent in path.parents:
        if parent.stat().st_uid == os.geteuid() and "pytest" in str(parent):
            parent.chmod(parent.stat().st_mode | 0o011)


# Directories


@needs_root
def test_below_a_directory_of_his_own_all_is_made_by_him(his: Path) -> None:
    make_directory(his / "a" / "b", HIM, 0o750)
    assert [owner_of(his / "a"), mode_of(his / "a")] == [(HIM.uid, HIM.gid), 0o755]
    assert [owner_of(his / "a" / "b"), mode_of(his / "a" / "b")] == [(HIM.uid, HIM.gid), 0o750]
    assert [each.name for each in his.iterdir()] == ["a"], "nothing is left behind"


@needs_root
@pytest.mark.parametrize("mode", [0o755, 0o775, 0o777, 0o1777])
def test_root_makes_a_directory_for_him_wherever_that_may_lie(his: Path, mode: int) -> None:
    his.chmod(mode)
    make_directory(his / "a" / "b", ANOTHER, 0o750)
    assert [owner_of(his / "a"), mode_of(his / "a")] == [(0, 0), 0o755]
    assert owner_of(his / "a" / "b") == (ANOTHER.uid, ANOTHER.gid)


def test_a_link_of_the_operator_s_is_followed_to_where_a_directory_is_missing(
    tmp_path: Path,
) -> None:
    (tmp_path / "disk").mkdir(mode=0o755)
    (tmp_path / "log").symlink_to("disk/../disk/logs")
    (tmp_path / "current").symlink_to(tmp_path / "log")
    make_directory(tmp_path / "current" / "greeterd", None, 0o750)
    assert mode_of(tmp_path / "disk" / "logs" / "greeterd") == 0o750
    assert mode_of(tmp_path / "disk" / "logs") == 0o755


@needs_root
@pytest.mark.parametrize("owner", [HIM, ANOTHER, None])
@pytest.mark.parametrize("shared", [False, True])
def test_a_link_that_another_user_could_have_put_there_leads_root_nowhere(
    his: Path, tmp_path: Path, owner: Identity | None, shared: bool
) -> None:
    if shared:
        os.chown(his, 0, 0)
        his.chmod(0o1777)
    (tmp_path / "secret").mkdir(mode=0o700)
    (his / "a").symlink_to(tmp_path / "secret")
    os.lchown(his / "a", HIM.uid, HIM.gid)
    with pytest.raises(ConfigError) as refused:
        prepare_directory(his / "a" / "b", owner, 0o750)
    reason = "is a link that another user could have put there"
    assert str(refused.value) == f"directory {his}/a: {reason}"
    assert list((tmp_path / "secret").iterdir()) == []


@needs_root
def test_an_existing_directory_may_be_reached_by_any_link(his: Path) -> None:
    with acting_as(HIM):
        (his / "disk").mkdir()
        (his / "log").symlink_to("disk")
    before = (owner_of(his / "disk"), mode_of(his / "disk"))
    prepare_directory(his / "log", HIM, 0o700)
    assert (owner_of(his / "disk"), mode_of(his / "disk")) == before


def test_a_circle_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        make_directory(tmp_path / "a" / "c", None, 0o750)


def test_no_descriptor_is_left_open_and_no_directory_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = names("/proc/self/fd")
    for name in ("fchmod", "rename", "mkdir"):
        with monkeypatch.context() as here:
            here.setattr(os, name, refuse)
            with pytest.raises(ResourceError, match=f"directory {tmp_path}/a: No space left"):
                prepare_directory(tmp_path / "a" / "b", None, 0o750)
    assert list(tmp_path.iterdir()) == []
    make_directory(tmp_path / "a" / "b", None, 0o750)
    assert names("/proc/self/fd") == before


PREPARE = """
from pathlib import Path
import sys
from greeterd.errors import GreeterdError
from greeterd.system.files import Identity
from greeterd.system.directories import prepare_directory
try:
    prepare_directory(Path(sys.argv[1]), Identity(0, 0), 0o750)
except GreeterdError as error:
    print(error.exit_code, error)
"""


@pytest.mark.parametrize("how", ["others may write it", "another user's"])
def test_a_hidden_directory_that_was_exchanged_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "another user's" and os.geteuid() != 0:
        pytest.skip("needs root to give a directory away")
    make = os.mkdir

    def make_and_exchange(name: str, mode: int = 0o777, *, dir_fd: int) -> None:
        make(name, mode, dir_fd=dir_fd)
        if name.startswith(".greeterd-"):
            if how == "another user's":
                os.chown(name, HIM.uid, HIM.gid, dir_fd=dir_fd)
            else:
                (tmp_path / name).chmod(0o720)

    monkeypatch.setattr(os, "mkdir", make_and_exchange)
    with pytest.raises(ConfigError, match=f"{tmp_path}/a: was exchanged while it was being made"):
        prepare_directory(tmp_path / "a", None, 0o750)
    assert list(tmp_path.iterdir()) == []


@needs_root
def test_a_read_only_file_system_may_pass(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("unshare is missing")
    mount = (
        'mount -t tmpfs none "$1" && mkdir "$1/logs" && mount -o remount,ro "$1" &&'
        ' exec "$2" -c "$3" "$1/$4"'
    )
    for name in ("logs", "missing"):
        done = subprocess.run(
            ["unshare", "--mount", "--propagation=private", "sh", "-c", mount, "sh",
             tmp_path, sys.executable, PREPARE, name],
            cwd=ROOT, text=True, capture_output=True, check=False, timeout=30,
        )  # fmt: skip
        assert done.stderr == ""
        assert done.stdout == f"71 directory {tmp_path}/{name}: Read-only file system\n"


def test_a_missing_directory_is_made_with_its_parents_and_mode(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        prepare_directory(tmp_path / "a" / "b", None, 0o750)
    finally:
        os.umask(old)
    assert mode_of(tmp_path / "a" / "b") == 0o750
    assert (tmp_path / "a" / "b").stat().st_uid == os.geteuid()


@needs_root
def test_root_gives_only_the_last_directory_away(tmp_path: Path) -> None:
    reachable(tmp_path / "a")
    old = os.umask(0o077)
    try:
        prepare_directory(tmp_path / "a" / "b", HIM, 0o750)
    finally:
        os.umask(old)
    found = (tmp_path / "a" / "b").stat()
    assert (found.st_uid, found.st_gid, mode_of(tmp_path / "a" / "b")) == (54321, 54322, 0o750)
    assert (tmp_path / "a").stat().st_uid == 0
    prepare_directory(tmp_path / "a" / "b", HIM, 0o700)
    assert mode_of(tmp_path / "a" / "b") == 0o750, "the second time it is left as it is"


@needs_root
def test_an_existing_directory_is_never_given_away(tmp_path: Path) -> None:
    reachable(tmp_path / "below")
    with pytest.raises(ConfigError, match=f"directory {tmp_path}: is not writable by uid 54321"):
        prepare_directory(tmp_path, HIM, 0o750)
    assert tmp_path.stat().st_uid == 0
    prepare_directory(tmp_path, Identity(0, 0), 0o750)


@needs_root
@pytest.mark.parametrize(
    ("uid", "gid", "mode", "writable"),
    [
        (54321, 0, 0o300, True),
        (54321, 0, 0o077, False),
        (0, 54322, 0o030, True),
        (0, 54322, 0o707, False),
        (0, 0, 0o003, True),
        (0, 0, 0o775, False),
        (0, 54322, 0o020, False),  # without search permission nothing can be made in it
    ],
)
def test_the_mode_is_read_as_the_kernel_reads_it(
    tmp_path: Path, uid: int, gid: int, mode: int, writable: bool
) -> None:
    path = tmp_path / "directory"
    path.mkdir()
    os.chown(path, uid, gid)
    path.chmod(mode)
    reachable(path)
    before = (os.getresuid(), os.getresgid(), os.getgroups())
    if writable:
        prepare_directory(path, HIM, 0o750)
    else:
        with pytest.raises(ConfigError, match="not writable"):
            prepare_directory(path, HIM, 0o750)
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before


@needs_root
def test_a_directory_below_one_that_the_user_may_not_enter_is_an_error(tmp_path: Path) -> None:
    reachable(tmp_path / "a")
    (tmp_path / "a").mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="is not writable by uid 54321"):
        prepare_directory(tmp_path / "a" / "b", HIM, 0o750)


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user who is not root")
def test_a_directory_that_we_cannot_write_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="is not writable"):
        prepare_directory(tmp_path, None, 0o750)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"directory .*/file: Not a directory"):
        prepare_directory(tmp_path / "file", None, 0o750)
    with pytest.raises(ConfigError, match=r"directory .*/file: Not a directory"):
        prepare_directory(tmp_path / "file" / "log", None, 0o750)


# Races

# The owner of a directory takes away what root makes there, as soon as he sees it, and leads on to
# what is root's: by a link to a directory, by one to a file, and by a directory of root's that he
# moves to that name. He puts it back, to do it again.
ATTACKER = """
import itertools, os, sys
his, secret = sys.argv[1:]
os.chdir(his)
os.setgroups([])
os.setresgid(54322, 54322, 54322)
os.setresuid(54321, 54321, 54321)
numbers = itertools.count()
print("ready", flush=True)
while True:
    for name in os.listdir():
        try:
            if name.startswith("taken"):
                os.rmdir(name)
            elif os.path.islink(name):
                os.unlink(name)
            elif name == "roots":
                pass
            elif os.path.exists(name + "/mark"):
                os.rename(name, "roots")
            else:
                number = next(numbers)
                os.rename(name, f"taken{number}")
                match number % 3:
                    case 0:
                        os.symlink(secret, name)
                    case 1:
                        os.symlink(secret + "/file", name)
                    case 2:
                        os.rename("roots", name)
        except OSError:
            pass
"""


@pytest.fixture
def secret(place: Path) -> Path:
    """Return a directory of root's that nobody else may enter, with a file like it."""
    secret = place / "secret"
    secret.mkdir(mode=0o700)
    (secret / "file").touch()
    (secret / "file").chmod(0o600)
    return secret


@pytest.fixture
def attacker(his: Path, secret: Path) -> Iterator["subprocess.Popen[str]"]:
    """Let him attack, in his directory, in which there is one of root's too."""
    (his / "roots").mkdir(mode=0o700)
    (his / "roots" / "mark").mkdir(mode=0o755)
    (his / "roots").chmod(0o711)  # he sees the mark, and can change nothing
    with subprocess.Popen(
        [sys.executable, "-c", ATTACKER, his, secret], stdout=subprocess.PIPE, text=True
    ) as attacker:
        try:
            assert attacker.stdout
            assert attacker.stdout.readline() == "ready\n"
            yield attacker
        finally:
            attacker.kill()


@pytest.mark.shows("limit greeterd.log")
@needs_root
@pytest.mark.parametrize("owner", [HIM, ANOTHER, None], ids=["his", "another's", "root's"])
@pytest.mark.usefixtures("attacker")
def test_root_changes_nothing_that_the_owner_of_the_place_leads_it_to(
    his: Path, secret: Path, owner: Identity | None
) -> None:
    roots = os.open(his / "roots", os.O_RDONLY)
    everything = (secret, secret / "file", roots)
    before = seen(*everything)
    times = disturbed = 0
    while times < sized(10_000, 300) or not disturbed:
        times += 1
        try:
            prepare_directory(his / "a" / "b", owner, 0o750)
        except GreeterdError:
            disturbed += 1
        assert seen(*everything) == before
        assert (names(secret), names(roots)) == (["file"], ["mark"])
        # Of what was made something may be in his way.
        for name in names(his):
            if name.startswith("taken"):
                shutil.rmtree(his / name, ignore_errors=True)
    os.close(roots)
