"""The program `greeterd` as a user meets it, as far as it does not serve."""

import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import greeterd
from greeterd.config.schema import NAMES

PACKAGES = Path(greeterd.__file__).parents[1]


def run(
    *argv: str, cwd: Path, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `greeterd` in an environment that holds nothing of the tests'."""
    return subprocess.run(
        [sys.executable, "-m", "greeterd", *argv],
        cwd=cwd,
        env={"PATH": os.defpath, "PYTHONPATH": str(PACKAGES), **(environ or {})},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_version_is_told_in_one_line(tmp_path: Path) -> None:
    done = run("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"greeterd {greeterd.__version__}\n",
        "",
    )


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_setting_with_its_default(flag: str, tmp_path: Path) -> None:
    done = run(flag, cwd=tmp_path, environ={"GREETERD_NONSENSE": "1"})
    assert (done.returncode, done.stderr) == (0, "")
    for name in (*NAMES, "config", "check", "version", "help"):
        assert re.search(rf"--{name.replace('_', '-')}\b", done.stdout), name
    plain = re.sub(r"[^\S ]|[│ ]+", " ", done.stdout)
    assert len(re.findall(r"\[default: ", plain)) == len(NAMES)


def test_help_fits_a_narrow_terminal(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path, environ={"COLUMNS": "80"})
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_check_shows_every_value_with_its_source_and_is_a_file_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('bind = ["unix:/run/x", "[::1]:1"]\nuser = "root"\n')
    argv = ["--check", "--config", "file", "--workers", "4", "--no-rescue", "--log-dir", 'a"b']
    done = run(*argv, cwd=tmp_path, environ={"GREETERD_UMASK": "77"})
    assert (done.returncode, done.stderr) == (0, "")
    assert tuple(tomllib.loads(done.stdout)) == NAMES
    lines = {line.split()[0]: re.sub(" +", " ", line) for line in done.stdout.splitlines()}
    assert lines["workers"] == "workers = 4 # flag --workers"
    assert lines["rescue"] == "rescue = false # flag --no-rescue"
    assert lines["umask"] == 'umask = "0077" # variable GREETERD_UMASK'
    assert lines["user"] == f'user = "root" # file {tmp_path}/file'
    assert lines["bind"] == f'bind = ["unix:/run/x", "[::1]:1"] # file {tmp_path}/file'
    assert lines["log_dir"] == rf'log_dir = "{tmp_path}/a\"b" # flag --log-dir'
    assert lines["wait"] == 'wait = "auto" # default, rotate here'
    assert lines["group"] == 'group = "" # default'

    (tmp_path / "effective").write_text(done.stdout)
    again = run("--check", "--config", str(tmp_path / "effective"), cwd=Path("/"))
    assert tomllib.loads(again.stdout) == tomllib.loads(done.stdout)


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("where", ["flag", "variable", "file"])
@pytest.mark.parametrize(
    ("name", "value"), [("log_dir", "größe"), ("run_dir", "größe"), ("bind", "unix:/größe")]
)
def test_a_name_that_the_locale_cannot_encode_is_refused_for_that(
    tmp_path: Path, where: str, name: str, value: str
) -> None:
    argv, environ = ["--check"], dict(ASCII)
    match where:
        case "flag":
            argv += [f"--{name.replace('_', '-')}", value]
        case "variable":
            environ[f"GREETERD_{name.upper()}"] = value
        case _:
            (tmp_path / "file").write_text(f'{name} = "{value}"\n', encoding="utf-8")
            argv += ["--config", "file"]
    done = run(*argv, cwd=tmp_path, environ=environ)
    reason = "must be ascii, the encoding of this locale, not "
    assert (done.returncode, done.stdout) == (2 if where == "flag" else 78, "")
    assert done.stderr.startswith(f"greeterd: {where} ")
    assert reason in done.stderr
    assert done.stderr.endswith("; LC_ALL=C.UTF-8 allows UTF-8\n")
    assert run(*argv, cwd=tmp_path, environ={**environ, "LC_ALL": "C.UTF-8"}).returncode == 0


def test_check_binds_nothing_and_makes_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        argv = ["--check", "--bind", f"127.0.0.1:{taken.getsockname()[1]}", "--run-dir", "run"]
        done = run(*argv, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.shows("exit 2 greeterd", "exit 78 greeterd")
@pytest.mark.parametrize(
    ("argv", "environ", "code", "message"),
    [
        (["--nonsense"], {}, 2, "unknown option: --nonsense"),
        (["--workers", "0"], {}, 2, "flag --workers: must be a whole number from 1 to 512, or"),
        ([], {"GREETERD_WORKERS": "0"}, 78, "variable GREETERD_WORKERS: must be a whole number"),
        ([], {"GREETERD_WORKRES": "1"}, 78, "variable GREETERD_WORKRES: no such setting; did"),
        (["--config", "file"], {}, 78, "file {here}/file, key workers: must be a whole number"),
        (["--config", "none"], {}, 78, "file {here}/none: No such file or directory"),
        (
            ["--mode", "reuseport", "--wait", "rotate"],
            {},
            78,
            "mode (flag --mode), wait (flag --wait): rotate is for workers that share",
        ),
        (
            ["--user", "no such user"],
            {"LC_ALL": "C"},
            2,
            "flag --user: the user 'no such user' is unknown",
        ),
    ],
)
def test_a_refusal_is_one_line_and_an_exit_code(
    argv: list[str], environ: dict[str, str], code: int, message: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("workers = -1")
    for extra in ([], ["--check"]):
        done = run(*argv, *extra, cwd=tmp_path, environ=environ)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr.startswith(f"greeterd: {message.format(here=tmp_path)}")
        assert done.stderr.count("\n") == 1
