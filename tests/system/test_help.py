"""What the three programs say of themselves: help, examples, completion, and what is missing."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

from greeterd.cli import greeter, greeterctl
from tests.system.conftest import StartDaemon
from tests.system.harness import clean_environment, program

PROGRAMS = ("greeterd", "greeterctl", "greeter")
EACH = pytest.mark.parametrize("name", PROGRAMS)


def run(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program(name), *arguments], env=clean_environment(variables), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


# Help


@EACH
def test_help_is_a_command_too(name: str) -> None:
    asked, told = run(name, "--help"), run(name, "help")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == asked.stdout


@pytest.mark.parametrize(
    ("name", "command"), [("greeterctl", ["stop"]), ("greeter", ["bench", "compare"])]
)
def test_help_of_a_command_is_its_page(name: str, command: list[str]) -> None:
    asked, told = run(name, *command, "--help"), run(name, "help", *command)
    assert (told.returncode, told.stdout) == (0, asked.stdout)


@pytest.mark.parametrize("name", ["greeterctl", "greeter"])
def test_without_a_command_the_help_is_shown_as_an_error(name: str) -> None:
    done = run(name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == run(name, "--help").stdout


@pytest.mark.parametrize(
    ("name", "app"), [("greeterctl", greeterctl.app), ("greeter", greeter.app)]
)
def test_an_unknown_command_is_answered_with_all_that_there_are(name: str, app: App) -> None:
    done = run(name, "dance")
    assert done.returncode == 2
    commands = [one for one in app if not one.startswith("-")]
    assert len(commands) > 2
    assert done.stderr.endswith(f" Commands: {', '.join(commands)}.\n")


def pages(app: App, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every command of a program with the end of its help page."""
    yield path, str(app.help_epilogue)
    for name in app:
        if not name.startswith("-"):
            yield from pages(app[name], (*path, name))


@pytest.mark.parametrize(
    ("name", "app"), [("greeterctl", greeterctl.app), ("greeter", greeter.app)]
)
def test_every_page_has_examples_that_are_understood(name: str, app: App) -> None:
    root = app.meta if name == "greeterctl" else app
    for path, end in pages(app):
        examples = re.findall(r"^- `(.*)`$", end, re.MULTILINE)
        assert examples, path
        for example in examples:
            [line] = [one for one in re.split(r" && | \| | < ", example) if one.split()[0] == name]
            words = shlex.split(line)[1:]
            assert not path or words[: len(path)] == list(path)
            root.parse_args(words)


def test_the_daemon_has_examples_too() -> None:
    assert "Examples: greeterd " in run("greeterd", "--help").stdout


# What is missing


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("greeterd", ["--workers"], "flag --workers: must be a whole number from 1 to 512, or"),
        ("greeterd", ["--config"], "flag --config: must be a file, and has no value"),
        ("greeterctl", ["ping", "--timeout"], "--timeout requires an argument: a number"),
        ("greeterctl", ["scale"], "WORKERS requires an argument: a whole number"),
        ("greeterctl", ["--run-dir"], "--run-dir requires an argument: a path"),
        ("greeter", ["load", "--count"], "--count requires an argument: a whole number"),
        ("greeter", ["bench", "repot"], "unexpected argument: repot"),
    ],
)
def test_a_missing_value_is_told_with_what_is_expected(
    name: str, arguments: list[str], said: str
) -> None:
    done = run(name, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nworkers = 3\n", "key server: tables are not used, settings stand at the top"),
        ("server.workers = 3\n", "key server: tables are not used"),
        ("reply = true\nworkers =\n", "key workers: must be a whole number from 1 to 512, or"),
        ("workers = # many\n", "or auto, and has no value"),
        ("workers\n", "or auto, and has no value"),
        ("workers = = 3\n", "Invalid value (at line 1"),
    ],
)
def test_a_file_that_is_not_understood_is_told_what_is_expected(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    done = run("greeterd", "--check", "--config", str(file))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (78, "", 1)
    assert done.stderr.startswith(f"greeterd: file {file}")
    assert said in done.stderr


# Where the daemon listens


@pytest.mark.parametrize("command", [["send", "Alice"], ["load", "--count", "1"]])
def test_a_client_understands_the_daemon_s_own_name_of_an_address(
    daemon: StartDaemon, command: list[str]
) -> None:
    server = daemon("--workers", "1", "--bind", "127.0.0.1:0", "--bind", "127.0.0.2:0")
    first, second = server.addresses
    for arguments, variables in (
        (["--bind", first], {}),
        (["--address", second], {"GREETERD_BIND": "unix:/nonexistent"}),
        ([], {"GREETERD_BIND": first}),
        ([], {"GREETERD_BIND": f"{second} unix:/nonexistent"}),
    ):
        done = run("greeter", *command, *arguments, **variables)
        assert done.returncode == 0, done
    done = run("greeter", *command, GREETERD_BIND="nowhere")
    assert done.returncode == 2
    assert "nowhere: it has no port" in done.stderr


# Completion

WORDS = {
    "greeterd": ("workers", "log-dir", "config"),
    "greeterctl": ("reload", "reopen", "run-dir", "timeout"),
    "greeter": ("send", "bench", "concurrency"),
}


@EACH
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_written_and_no_startup_file(
    tmp_path: Path, name: str, shell: str
) -> None:
    done = run(name, "--install-completion", "--shell", shell, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    [script] = [path for path in tmp_path.rglob(f"*{name}*") if path.is_file()]
    assert all(word in script.read_text() for word in WORDS[name])
    assert not [path for path in tmp_path.iterdir() if path.name.endswith("rc")]


@pytest.mark.parametrize(
    ("name", "begun", "words"),
    [
        ("greeterctl", "re", ["reload", "reopen", "restart"]),
        ("greeter", "be", ["bench"]),
        ("greeterd", "--work", ["--worker-timeout", "--workers"]),
    ],
)
@pytest.mark.skipif(shutil.which("bash") is None, reason="asks bash")
def test_bash_completes(tmp_path: Path, name: str, begun: str, words: list[str]) -> None:
    script = tmp_path / "completion"
    done = run(name, "--install-completion", "--shell", "bash", "--output", str(script))
    assert done.returncode == 0, done.stderr
    ask = (
        f". {script}; COMP_WORDS=({name} {begun}); COMP_CWORD=1; _{name};"
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    said = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert sorted(said.stdout.split()) == words


@EACH
def test_a_completion_that_cannot_be_written_is_one_line(name: str) -> None:
    for arguments in (["--shell", "ksh"], ["--shell", "bash", "--output", "/proc/none/x"]):
        done = run(name, "--install-completion", *arguments)
        assert done.returncode in {2, 71}
        assert done.stderr.startswith(f"{name}: ")
        assert done.stderr.count("\n") == 1
