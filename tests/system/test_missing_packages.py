"""The installed programs where a package is missing."""

import subprocess
import sys

import pytest

START = """
import sys
program, *missing = sys.argv[1:]
sys.argv[1:] = []
for one in missing[0].split(","):
    sys.modules[one] = None
sys.argv = [program, *missing[1:]]
from greeterd.cli import entry
sys.exit(getattr(entry, program)())
"""


def run(program: str, missing: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", START, program, missing, *arguments],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("program", "missing", "arguments"),
    [
        ("greeterctl", "rich", ["status"]),
        ("greeterctl", "msgspec", ["status"]),
        ("greeterctl", "cyclopts", ["status"]),
        ("greeter", "cyclopts", ["send", "Alice"]),
        ("greeterd", "cyclopts", ["--check"]),
        ("greeterd", "structlog", []),
        ("greeterd", "setproctitle", []),
    ],
)
def test_a_missing_package_is_named_in_one_line(
    program: str, missing: str, arguments: list[str]
) -> None:
    done = run(program, missing, *arguments)
    assert done.stderr == f"{program}: {missing} is not installed: pip install greeterd\n"
    assert (done.returncode, done.stdout) == (69, "")


def test_detaching_without_its_package_is_told_to_the_shell() -> None:
    done = run("greeterd", "daemon", "--daemonize", "--bind", "127.0.0.1:0")
    assert done.stderr == "greeterd: python-daemon is not installed: pip install greeterd\n"
    assert done.returncode == 69


@pytest.mark.parametrize("package", ["psutil", "hdrhistogram", "scipy"])
def test_a_measurement_names_the_extra_that_it_needs(package: str) -> None:
    module = {"hdrhistogram": "hdrh"}.get(package, package)
    done = run("greeter", module, "bench")
    assert done.stderr.splitlines()[-1] == (
        f"greeter: {package} is not installed: pip install 'greeterd[bench]'"
    )
    assert done.returncode == 69


@pytest.mark.parametrize(
    ("program", "arguments"),
    [("greeterd", ["--check"]), ("greeterctl", ["--help"]), ("greeter", ["send", "--help"]),
     ("greeter", ["bench", "report", "--help"])],
)  # fmt: skip
def test_without_the_extra_the_rest_works(program: str, arguments: list[str]) -> None:
    done = run(program, "psutil,hdrh,jinja2,matplotlib,scipy,uvloop", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
