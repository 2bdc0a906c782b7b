"""Operations on a log file by its descriptor, on a real file system."""

import errno
import os
from collections.abc import Callable, Iterator
from fcntl import F_GETFL, fcntl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greeterd.worker import log_files
from greeterd.worker.log_files import (
    cut,
    end_of_last_line,
    is_at,
    open_log_file,
    sync_again,
    with_path,
)

OpenLog = Callable[..., int]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def open_log(path: Path) -> Iterator[OpenLog]:
    fds: list[int] = []

    def opened(content: bytes = b"", *, durable: bool = False) -> int:
        if content:
            path.write_bytes(content)
        fds.append(open_log_file(path, durable=durable))
        return fds[-1]

    yield opened
    for fd in fds:
        os.close(fd)


def test_a_log_is_appended_to_wherever_its_descriptor_stands(open_log: OpenLog, path: Path) -> None:
    fd = open_log(b"one\n")
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
    assert os.pread(fd, 3, 0) == b"one"


def test_a_new_log_may_be_read_by_its_group_only(open_log: OpenLog, path: Path) -> None:
    before = os.umask(0)
    open_log()
    os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("durable", [False, True])
def test_the_name_of_a_durable_log_is_synced(
    open_log: OpenLog, path: Path, monkeypatch: pytest.MonkeyPatch, *, durable: bool
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
    )
    open_log(durable=durable)
    assert synced == ([str(path.parent)] if durable else [])


def test_a_name_that_cannot_be_synced_is_told_and_leaves_nothing_open(
    open_log: OpenLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_fd: int) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "fsync", refuse)
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(OSError, match="no") as raised:
        open_log(durable=True)
    assert raised.value.filename == str(path.parent)
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_an_error_names_the_file_unless_it_names_one_already() -> None:
    named = with_path(OSError(errno.EIO, "no"), Path("/log"))
    assert (named.errno, named.strerror, named.filename) == (errno.EIO, "no", "/log")
    other = OSError(errno.EIO, "no", "/other")
    assert with_path(other, Path("/log")) is other


def test_a_path_leads_to_the_open_file_or_not(open_log: OpenLog, path: Path) -> None:
    fd = open_log()
    assert is_at(fd, path)
    path.rename(path.with_name("moved"))
    assert not is_at(fd, path)
    path.touch()
    assert not is_at(fd, path)


@pytest.mark.parametrize("block", [1, 2, 3, 7, 65536])
def test_the_end_of_the_last_line_is_found_across_blocks(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(log_files, "_BLOCK_BYTES", block)
    fd = open_log()
    for content, end in (
        (b"", 0),
        (b"\n", 1),
        (b"torn", 0),
        (b"a\n", 2),
        (b"a\nb", 2),
        (b"a\nbcdefgh", 2),
        (b"\n\nb", 2),
        (b"\nabcdef", 1),
    ):
        os.ftruncate(fd, 0)
        os.write(fd, content)
        assert end_of_last_line(fd, len(content)) == end
    assert end_of_last_line(fd, 1) == 1


@given(st.lists(st.sampled_from([b"\n", b"x"]), max_size=30).map(b"".join), st.integers(1, 9))
def test_the_end_of_the_last_line_is_that_of_the_content(content: bytes, block: int) -> None:
    fd = os.memfd_create("log")
    os.write(fd, content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_files, "_BLOCK_BYTES", block)
        assert end_of_last_line(fd, len(content)) == content.rfind(b"\n") + 1
    os.close(fd)


def test_one_read_finds_the_end_of_a_whole_file(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = open_log(b"x" * 100_000 + b"\n")
    read: list[int] = []
    pread = os.pread

    def note(fd: int, size: int, offset: int) -> bytes:
        read.append(size)
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", note)
    assert end_of_last_line(fd, 100_001) == 100_001
    assert read == [1]


def test_a_file_is_cut_or_it_is_told_why_not(open_log: OpenLog, path: Path) -> None:
    fd = open_log(b"whole\ntorn")
    cut(fd, 6)
    assert path.read_bytes() == b"whole\n"
    reader = os.open(path, os.O_RDONLY)
    with pytest.raises(OSError, match="a torn record cannot be cut off: Invalid") as raised:
        cut(reader, 0)
    assert raised.value.errno == errno.EINVAL
    os.close(reader)


def test_lines_are_written_again_in_their_place_and_synced(
    open_log: OpenLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = open_log(b"one\nTWO\nthree\n")
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fdatasync", lambda _fd: synced.append(path.read_bytes()))
    flags = fcntl(fd, F_GETFL)
    sync_again(fd, b"two\n", 4)
    assert synced == [b"one\ntwo\nthree\n"]
    assert fcntl(fd, F_GETFL) == flags
    sync_again(fd, b"THREE\n", 8)
    assert path.read_bytes() == b"one\ntwo\nTHREE\n"


def test_lines_of_a_file_that_was_truncated_are_not_written_again(
    open_log: OpenLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = open_log(b"one\ntw")
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    sync_again(fd, b"two\n", 4)
    assert path.read_bytes() == b"one\ntw"
    assert synced == [fd]


def test_lines_that_are_written_again_in_part_only_are_not_synced(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = open_log(b"one\ntwo\n")
    flags = fcntl(fd, F_GETFL)
    monkeypatch.setattr(os, "pwrite", lambda _fd, data, _offset: len(data) - 1)
    monkeypatch.setattr(os, "fdatasync", lambda _fd: pytest.fail("it was not written"))
    with pytest.raises(OSError, match="cannot be written again") as raised:
        sync_again(fd, b"two\n", 4)
    assert raised.value.errno == errno.EIO
    assert fcntl(fd, F_GETFL) == flags
