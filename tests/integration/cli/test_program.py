"""One treatment of errors and streams for the three programs, with a program of the test's own."""

import errno
import io
import os
import re
import resource
import socket
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greeterd.cli.program import complain, run_program
from greeterd.errors import GreeterdError, UsageError


def refuse(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("no \x1b[31mred"), 2, r"p: no \x1b[31mred"),
        (GreeterdError("two\nlines"), 70, r"p: two\nlines"),
        (OSError(errno.EIO, "Input/output error", "/a\tb"), 71, r"p: /a\tb: Input/output error"),
        (KeyboardInterrupt(), 130, "p: interrupted"),
    ],
)
def test_an_error_is_one_line_and_its_code(
    error: BaseException, code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_program("p", lambda: refuse(error)) == code
    assert capfd.readouterr() == ("", f"{said}\n")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("rich.console", "rich is not installed: pip install greeterd"),
        ("daemon", "python-daemon is not installed: pip install greeterd"),
        ("psutil", "psutil is not installed: pip install 'greeterd[bench]'"),
    ],
)
def test_a_missing_package_is_one_line_that_says_what_to_install(
    module: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    assert run_program("p", lambda: refuse(error)) == 69
    assert capfd.readouterr() == ("", f"p: {said}\n")


@pytest.mark.parametrize("module", ["greeterd.nonsense", None])
def test_a_missing_module_of_our_own_is_a_defect(module: str | None) -> None:
    with pytest.raises(ModuleNotFoundError):
        run_program("p", lambda: refuse(ModuleNotFoundError("", name=module)))


@pytest.mark.shows("exit 71 greeterctl", "exit 71 greeter")
def test_what_the_system_refuses_is_71(capfd: pytest.CaptureFixture[str]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def body() -> int:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            socket.socket().close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        return 0

    assert run_program("p", body) == 71
    said = capfd.readouterr()
    assert not said.out
    assert re.fullmatch(r"p: Too many open files \(socket\.py, line \d+\)\n", said.err)


def test_an_error_of_something_else_is_not_taken_for_one_of_standard_output(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run_program("p", lambda: refuse(BrokenPipeError(errno.EPIPE, "Broken pipe"))) == 71
    assert capfd.readouterr().err.startswith("p: Broken pipe (")


def test_an_unforeseen_error_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_program("p", lambda: 1 // 0)


def test_the_streams_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout, sys.stderr
    assert run_program("p", lambda: 3) == 3
    assert (sys.stdout, sys.stderr) == before
    monkeypatch.setattr(sys, "stderr", None)
    assert run_program("p", lambda: refuse(UsageError("unheard"))) == 2


def test_characters_that_the_locale_lacks_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert run_program("p", lambda: min(0, sys.stdout.write("größe\n"))) == 0
    assert (tmp_path / "out").read_text() == r"gr\xf6\xdfe" + "\n"


@pytest.mark.parametrize("code", [0, 1])
def test_what_was_still_to_be_written_decides_only_about_a_success(
    code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def body() -> int:
        print("a result")
        if code:
            raise UsageError("wrong")
        return code

    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run_program("p", body) == (2 if code else 74)
    said = "wrong" if code else "standard output: No space left on device"
    assert capfd.readouterr().err == f"p: {said}\n"


def test_bytes_are_guarded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)

        def body() -> int:
            sys.stdout.buffer.write(b"a reply\n")
            sys.stdout.buffer.flush()
            return 0

        assert run_program("p", body) == 141


@given(st.text())
def test_a_complaint_is_one_printable_line_whatever_it_quotes(text: str) -> None:
    with redirect_stderr(io.StringIO()) as stderr:
        complain("p", text)
    said = stderr.getvalue()
    assert said.startswith("p: ")
    assert said.endswith("\n")
    assert said[:-1].isprintable()
