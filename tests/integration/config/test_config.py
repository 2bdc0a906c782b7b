"""Flags, variables, a file and the system become one configuration, or one refusal."""

import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import greeterd.config.schema
from greeterd.cli import greeterd as program
from greeterd.config.loader import Loaded, _app, _settings, load, to_toml
from greeterd.config.schema import FIXED, NAMES, Config, contradictions, fixed_differences
from greeterd.config.types import SettingType, kind_of
from greeterd.errors import ConfigError, GreeterdError, UsageError
from greeterd.system.cpus import usable_cpus

EXAMPLE = Path(__file__).parents[3] / "conf/greeterd.toml"

SETTINGS = _settings(_app().assemble_argument_collection())

# Three texts for each setting, none its default where there are enough, and all possible together.
TEXTS: Mapping[str, tuple[str, str, str]] = {
    "mode": ("reuseport", "inherit", "reuseport"),
    "workers": ("3", "512", "1"),
    "bind": ("127.0.0.1:0", "[::1]:80 10.0.0.1:81", "localhost:82"),
    "backlog": ("1", "2", "2147483647"),
    "wait": ("epoll", "auto", "epoll"),
    "steering": ("cpu", "random", "cpu"),  # which needs the first text of the mode
    "handoff_policy": ("least-busy", "round-robin", "least-busy"),  # which needs NEEDED
    "max_name_bytes": ("1", "2", "1048576"),
    "client_timeout": ("0.001", "1e3", "1000000"),
    "max_connections": ("1", "2", "3"),
    "reply": ("true", "false", "true"),
    "allow_exit": ("true", "false", "true"),
    "graceful_timeout": ("10", "11.5", "12"),
    "drain_grace": ("0", "1", "2"),
    "shutdown_delay": ("1", "2", "3"),
    "worker_timeout": ("1", "2", "3"),
    "start_timeout": ("1", "2", "3"),
    "max_restarts": ("0", "1", "2"),
    "restart_window": ("1", "2", "3"),
    "rescue": ("false", "true", "false"),
    "max_greetings": ("1", "2", "3"),
    "max_age": ("1", "2.5", "3"),
    "max_rss": ("1", "2", "3"),
    "daemonize": ("true", "false", "true"),
    "run_dir": ("/one", "two", "../three and a half"),
    "user": ("0", "root", ""),
    "group": ("0", "root", "1"),
    "max_files": ("64", "auto", "1024"),
    "core_dumps": ("true", "false", "true"),
    "cpu_affinity": (str(min(os.sched_getaffinity(0))), "off", "auto"),
    "umask": ("0077", "22", "0o002"),
    "unix_mode": ("0600", "660", "0"),
    "log_dir": ("/one", "two", './"three"\x7f'),
    "log_format": ("json", "console", "auto"),
    "log_level": ("debug", "warning", "error"),
    "fsync": ("always", "never", "always"),
}
SOURCES = ("flag", "variable", "file")
NEEDED = {"steering": ["--mode=reuseport"], "handoff_policy": ["--mode=handoff"]}
"""Without these a setting cannot be given."""


def kind(name: str) -> SettingType:
    return kind_of(SETTINGS[name].parameter)


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def toml(keys: Mapping[str, str]) -> str:
    """Write the keys as TOML, each text as a value of its setting's type."""
    lines = (f"{key} = {kind(key).to_toml(kind(key).parse(text))}\n" for key, text in keys.items())
    return "".join(lines)


def load_in(
    directory: Path,
    argv: list[str] | None = None,
    environ: Mapping[str, str] | None = None,
    file: str | None = None,
) -> Loaded:
    """Load as user 1000 in `directory`, with `file` as the contents of the file."""
    argv = argv or []
    if file is not None:
        (directory / "file").write_text(file)
        argv = [*argv, "--config", "file"]
    return load(argv, environ or {}, directory=directory, uid=1000)


def expected(name: str, text: str, directory: Path) -> object:
    value = kind(name).parse(text)
    return directory / value if isinstance(value, Path) else value


# Precedence


@settings(max_examples=40, deadline=None)
@given(st.fixed_dictionaries({name: st.sets(st.sampled_from(SOURCES)) for name in NAMES}))
def test_a_flag_beats_a_variable_beats_the_file_beats_the_default(
    given_by: dict[str, set[str]],
) -> None:
    if given_by["steering"]:
        given_by["mode"] = given_by["mode"] | {"flag"}
    given_by["handoff_policy"] = set()  # not possible with all others
    texts = {
        source: {name: TEXTS[name][i] for name in NAMES if source in given_by[name]}
        for i, source in enumerate(SOURCES)
    }
    argv = [f"{flag(name)}={text}" for name, text in texts["flag"].items()]
    environ = {f"GREETERD_{name.upper()}": text for name, text in texts["variable"].items()}
    with TemporaryDirectory() as path:
        here = Path(path)
        loaded = load_in(here, argv, environ, toml(texts["file"]))
        for name in NAMES:
            source = next((one for one in SOURCES if one in given_by[name]), None)
            value = getattr(loaded.config, name)
            if source is None:
                assert loaded.sources[name] == "default"
                assert name in {"run_dir", "log_dir"} or value == getattr(Config(), name)
            else:
                detail = {
                    "flag": flag(name),
                    "variable": f"GREETERD_{name.upper()}",
                    "file": str(here / "file"),
                }[source]
                assert loaded.sources[name] == f"{source} {detail}"
                assert value == expected(name, texts[source][name], here)
        again = load_in(here, file=to_toml(loaded))
        assert again.config == loaded.config


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 2), (1, 2)])
def test_of_two_sources_the_earlier_one_counts(
    name: str, first: int, second: int, tmp_path: Path
) -> None:
    by = {SOURCES[i]: TEXTS[name][i] for i in (first, second)}
    loaded = load_in(
        tmp_path,
        [*NEEDED.get(name, []), *([f"{flag(name)}={by['flag']}"] if "flag" in by else [])],
        {f"GREETERD_{name.upper()}": by["variable"]} if "variable" in by else {},
        toml({name: by["file"]} if "file" in by else {}),
    )
    assert getattr(loaded.config, name) == expected(name, TEXTS[name][first], tmp_path)
    assert loaded.sources[name].startswith(SOURCES[first])


def test_the_flag_that_names_the_file_beats_the_variable(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("workers = 1")
    (tmp_path / "two").write_text("workers = 2")
    environ = {"GREETERD_CONFIG": "two"}
    assert load_in(tmp_path, ["--config", "one"], environ).config.workers == 1
    assert load_in(tmp_path, [], environ).config.workers == 2
    assert load_in(tmp_path, ["--config", ""], environ).config.workers == "auto"


def test_the_file_that_was_read_is_told_by_its_absolute_path(tmp_path: Path) -> None:
    assert load_in(tmp_path, file="").file == tmp_path / "file"
    assert load_in(tmp_path, [], {"GREETERD_CONFIG": ""}).file is None
    assert load_in(tmp_path).file is None


def test_a_switch_is_turned_off_by_its_negative_flag(tmp_path: Path) -> None:
    loaded = load_in(tmp_path, ["--no-rescue", "--reply"], {"GREETERD_RESCUE": "true"})
    assert (loaded.config.rescue, loaded.config.reply) == (False, True)
    assert loaded.sources["rescue"] == "flag --no-rescue"


def test_several_flags_or_one_list_are_several_addresses(tmp_path: Path) -> None:
    several = ("127.0.0.1:1", "[::1]:1")
    flags = [part for one in several for part in ("--bind", one)]
    assert load_in(tmp_path, flags).config.bind == several
    assert load_in(tmp_path, [], {"GREETERD_BIND": " ".join(several)}).config.bind == several
    assert load_in(tmp_path, file='bind = ["127.0.0.1:1", "[::1]:1"]').config.bind == several
    assert load_in(tmp_path, file='bind = "127.0.0.1:1"').config.bind == several[:1]


def test_whole_numbers_are_seconds_in_the_file(tmp_path: Path) -> None:
    value = load_in(tmp_path, file="client_timeout = 5").config.client_timeout
    assert (value, type(value)) == (5.0, float)


def test_check_is_asked_for_by_its_flag_alone(tmp_path: Path) -> None:
    assert load_in(tmp_path, ["--check"]).check
    assert not load_in(tmp_path).check


def test_a_reload_reads_the_file_again(tmp_path: Path) -> None:
    assert load_in(tmp_path, file="workers = 1").config.workers == 1
    assert load_in(tmp_path, file="workers = 2").config.workers == 2


def test_loading_changes_neither_its_arguments_nor_the_next_load(tmp_path: Path) -> None:
    argv, environ = ["--workers", "3"], {"GREETERD_BACKLOG": "7"}
    assert load_in(tmp_path, argv, environ) == load_in(tmp_path, argv, environ)
    assert (argv, environ) == (["--workers", "3"], {"GREETERD_BACKLOG": "7"})


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().workers = 3  # type: ignore[misc]


# Refusals

FILE = "file {here}/file"


WHOLE = "must be a whole number from"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--worker", "3"], "unknown option: --worker. Did you mean --workers?"),
        (["--zzz"], "unknown option: --zzz"),
        (["-x"], "unknown option: -x"),
        (["start"], "unexpected argument: start"),
        (["--reply", "yes"], "unexpected argument: yes"),
        (["--", "x"], "unexpected argument: x"),
        (["__complete"], "unexpected argument: __complete"),
        (["--workers"], f"flag --workers: {WHOLE} 1 to 512, or auto, and has no value"),
        (["--config"], "flag --config: must be a file, and has no value"),
        (["--workers=1", "--workers=2"], "parameter --workers specified multiple times"),
        (["--a\nb\x1b[2J"], r"unknown option: --a\nb\x1b[2J"),
        (["--check=perhaps"], "flag --check: must be true or false, not 'perhaps'"),
        (["--no-check"], "unknown option: --no-check. Did you mean --check?"),
        (["--empty-bind"], "unknown option: --empty-bind. Did you mean --bind?"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(
    argv: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as refused:
        load_in(tmp_path, argv)
    assert str(refused.value) == message
    assert refused.value.exit_code == 2


SECONDS = "must be a number of seconds from"
OCTAL = 'must be an octal string from "0000" to "0777", not'
REFUSED = [
    ("mode", "fork", "must be one of inherit, reuseport, handoff, not 'fork'"),
    ("mode", "INHERIT", "must be one of inherit, reuseport, handoff, not 'INHERIT'"),
    ("workers", "0", f"{WHOLE} 1 to 512, or auto, not '0'"),
    ("workers", "513", f"{WHOLE} 1 to 512, or auto, not '513'"),
    ("workers", "2.0", f"{WHOLE} 1 to 512, or auto, not '2.0'"),
    ("workers", "Auto", f"{WHOLE} 1 to 512, or auto, not 'Auto'"),
    ("workers", "", f"{WHOLE} 1 to 512, or auto, not ''"),
    ("workers", "9" * 5000, f"{WHOLE} 1 to 512, or auto, not '{'9' * 5000}'"),
    ("bind", "", "must be at least one address"),
    ("bind", "80", "'80' is not an address: it has no port: write host:port, [v6]:port or"),
    ("bind", "a:1 b:x", "'b:x' is not an address: the port must be 0 to 65535, not 'x'"),
    ("backlog", "0", f"{WHOLE} 1 to 2147483647, not '0'"),
    ("backlog", "2147483648", f"{WHOLE} 1 to 2147483647, not '2147483648'"),
    ("wait", "select", "must be one of auto, rotate, exclusive, epoll, blocking, not 'select'"),
    ("steering", "numa", "must be one of hash, cpu, random, not 'numa'"),
    ("handoff_policy", "chance", "must be one of round-robin, least-busy, not 'chance'"),
    ("max_name_bytes", "0", f"{WHOLE} 1 to 1048576, not '0'"),
    ("max_name_bytes", "1048577", f"{WHOLE} 1 to 1048576, not '1048577'"),
    ("client_timeout", "0", f"{SECONDS} 0.001 to 1000000, not '0'"),
    ("client_timeout", "nan", f"{SECONDS} 0.001 to 1000000, not 'nan'"),
    ("client_timeout", "10s", f"{SECONDS} 0.001 to 1000000, not '10s'"),
    ("max_connections", "0", f"{WHOLE} 1 to 2147483647, not '0'"),
    ("reply", "perhaps", "must be true or false, not 'perhaps'"),
    ("allow_exit", "", "must be true or false, not ''"),
    ("graceful_timeout", "inf", f"{SECONDS} 0.001 to 1000000, not 'inf'"),
    ("drain_grace", "-1", f"{SECONDS} 0 to 1000000, not '-1'"),
    ("shutdown_delay", "-1", f"{SECONDS} 0 to 1000000, not '-1'"),
    ("worker_timeout", "0", f"{SECONDS} 0.001 to 1000000, not '0'"),
    ("start_timeout", "1000001", f"{SECONDS} 0.001 to 1000000, not '1000001'"),
    ("max_restarts", "-1", f"{WHOLE} 0 to 2147483647, not '-1'"),
    ("restart_window", "-0.5", f"{SECONDS} 0.001 to 1000000, not '-0.5'"),
    ("rescue", "2", "must be true or false, not '2'"),
    ("max_greetings", "-1", f"{WHOLE} 0 to 2147483647, not '-1'"),
    ("max_age", "-1", f"{SECONDS} 0 to 1000000, not '-1'"),
    ("max_rss", "1.5", f"{WHOLE} 0 to 1073741824, not '1.5'"),
    ("daemonize", "on", "must be true or false, not 'on'"),
    ("run_dir", "/\udcff", r"must be UTF-8, not '/\udcff'"),
    ("user", "no such user", "the user 'no such user' is unknown"),
    ("user", "4294967295", "must be a user, not '4294967295'"),
    ("group", "no such group", "the group 'no such group' is unknown"),
    ("max_files", "63", f"{WHOLE} 64 to 2147483647, or auto, not '63'"),
    ("core_dumps", "0.5", "must be true or false, not '0.5'"),
    ("cpu_affinity", "1,", "must be off, auto or a list of CPUs, not '1,': a list looks like"),
    ("cpu_affinity", "3-1", "must be off, auto or a list of CPUs, not '3-1': 3-1 is no range of"),
    ("umask", "8", f"{OCTAL} '8'"),
    ("umask", "01000", f"{OCTAL} '01000'"),
    ("umask", "-1", f"{OCTAL} '-1'"),
    ("unix_mode", "rw", f"{OCTAL} 'rw'"),
    ("log_dir", "\udcff", r"must be UTF-8, not '\udcff'"),
    ("log_format", "xml", "must be one of auto, json, console, not 'xml'"),
    ("log_level", "loud", "must be one of debug, info, warning, error, not 'loud'"),
    ("fsync", "yes", "must be one of never, always, not 'yes'"),
]


def test_every_setting_refuses_something() -> None:
    assert {name for name, _, _ in REFUSED} == set(NAMES)


@pytest.mark.parametrize(("name", "text", "reason"), REFUSED)
def test_a_bad_value_is_refused_by_its_flag_or_its_variable(
    name: str, text: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as usage:
        load_in(tmp_path, [f"{flag(name)}={text}"])
    assert str(usage.value).startswith(f"flag {flag(name)}: {reason}")
    with pytest.raises(ConfigError) as wrong:
        load_in(tmp_path, [], {f"GREETERD_{name.upper()}": text})
    assert str(wrong.value).startswith(f"variable GREETERD_{name.upper()}: {reason}")
    assert (usage.value.exit_code, wrong.value.exit_code) == (2, 78)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("workers = 0", f"key workers: {WHOLE} 1 to 512, or auto, not '0'"),
        ('workers = "x"', f"key workers: {WHOLE} 1 to 512, or auto, not 'x'"),
        ("workers = true", f"key workers: {WHOLE} 1 to 512, or auto, not True"),
        ("workers = 2.0", f"key workers: {WHOLE} 1 to 512, or auto, not 2.0"),
        ('backlog = "5"', f"key backlog: {WHOLE} 1 to 2147483647, not '5'"),
        ("reply = 1", "key reply: must be true or false, not 1"),
        ('reply = "true"', "key reply: must be true or false, not 'true'"),
        ("client_timeout = nan", f"key client_timeout: {SECONDS} 0.001 to 1000000, not 'nan'"),
        ('client_timeout = "5"', f"key client_timeout: {SECONDS} 0.001 to 1000000, not '5'"),
        ("client_timeout = true", f"key client_timeout: {SECONDS} 0.001 to 1000000, not True"),
        ("umask = 0o27", f"key umask: {OCTAL} 23"),
        ("user = 0", "key user: must be a user, not 0"),
        ('user = "no\\nbody"', r"key user: the user 'no\nbody' is unknown"),
        ("mode = []", "key mode: must be one of inherit, reuseport, handoff, not []"),
        ("bind = []", "key bind: must be at least one address"),
        ('bind = ["a:1", 2]', "key bind: must be a list of addresses, not ['a:1', 2]"),
        ("bind = {}", "key bind: must be a list of addresses, not {}"),
        ("log_dir = 2024-01-01", "key log_dir: must be a directory, not datetime.date(2024, 1, 1)"),
        ('log_dir = "\\u0000"', r"key log_dir: must be a directory, not '\x00'"),
        ("[workers]\nx = 1", f"key workers: {WHOLE} 1 to 512, or auto, not {{'x': 1}}"),
        ("worker = 1", "key worker: no such setting; did you mean workers?"),
        ("max-name-bytes = 1", "key max-name-bytes: no such setting; did you mean max_name_bytes?"),
        ('"a\\u001bb" = 1', r"key a\x1bb: no such setting"),
        ('config = "x"', "key config: no such setting"),
        ("check = true", "key check: no such setting"),
        ("[server]\nworkers = 1", "key server: tables are not used"),
    ],
)
def test_a_bad_key_of_the_file_is_refused_by_file_and_key(
    line: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        load_in(tmp_path, file=line)
    assert str(refused.value).startswith(f"file {tmp_path}/file, {reason}")
    assert refused.value.exit_code == 78


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"nonsense", "Expected '=' after a key"),
        (b"workers = 1\nworkers = 2", "Cannot overwrite a value"),
        (b"a = '\xff'", "'utf-8' codec can't decode"),
    ],
)
def test_a_file_that_is_no_toml_is_refused(contents: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(contents)
    with pytest.raises(ConfigError) as refused:
        load_in(tmp_path, ["--config", "file"])
    assert str(refused.value).startswith(f"file {tmp_path}/file: {reason}")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none", "No such file or directory"),
        (".", "not a regular file"),
        ("a" * 300, "File name too long"),
        ("file\0", "embedded null byte"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        load_in(tmp_path, [], {"GREETERD_CONFIG": name})
    assert str(refused.value).startswith(f"file {tmp_path}")


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("GREETERD_WORKRES", "; did you mean GREETERD_WORKERS?"),
        ("GREETERD_Workers", "; did you mean GREETERD_WORKERS?"),
        ("GREETERD_LOGDIR", "; did you mean GREETERD_LOG_DIR?"),
        ("GREETERD_CHECK", ""),
        ("GREETERD_", ""),
    ],
)
def test_a_variable_that_is_no_setting_is_refused(variable: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_in(tmp_path, [], {variable: "1"})
    assert str(refused.value) == f"variable {variable}: no such setting{hint}"


def test_variables_of_others_are_none_of_ours(tmp_path: Path) -> None:
    assert load_in(tmp_path, [], {"GREETER_X": "1", "WORKERS": "3"}) == load_in(tmp_path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--mode=reuseport", "--bind=unix:/run/x"],
            "mode (flag --mode), bind (flag --bind): the kernel has no reuseport balancing",
        ),
        (
            ["--mode=reuseport", "--wait=rotate"],
            "mode (flag --mode), wait (flag --wait): rotate is for workers that share a listener",
        ),
        (
            ["--mode=reuseport", "--wait=exclusive"],
            "mode (flag --mode), wait (flag --wait): exclusive is for workers that share a",
        ),
        (
            ["--steering=random"],
            "mode (default), steering (flag --steering): steering chooses between listeners",
        ),
        (
            ["--mode=handoff", "--steering=random"],
            "mode (flag --mode), steering (flag --steering): steering chooses between",
        ),
        (
            ["--mode=handoff", "--wait=blocking"],
            "mode (flag --mode), wait (flag --wait): blocking is for several accepting workers",
        ),
        (
            ["--handoff-policy=least-busy"],
            "mode (default), handoff_policy (flag --handoff-policy): nothing is handed off",
        ),
        (
            ["--cpu-affinity=8000-8191"],
            "cpu_affinity (flag --cpu-affinity): CPU 8000-8191 cannot be used by this process",
        ),
        (
            ["--wait=blocking", "--bind=a:1", "--bind=b:1"],
            "wait (flag --wait), bind (flag --bind): a worker blocks on one listener",
        ),
        (["--bind=[::1]:1", "--bind=[0::1]:01"], "bind (flag --bind): [::1]:1 is listed twice"),
        (
            ["--graceful-timeout=0.25"],
            "drain_grace (default), graceful_timeout (flag --graceful-timeout): the first must",
        ),
        (["--user=4000000000"], "user (flag --user), group (default): a user without an entry"),
    ],
)
def test_settings_that_contradict_are_refused_with_the_source_of_each(
    argv: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        load_in(tmp_path, argv)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    "argv",
    [
        ["--mode=reuseport", "--wait=blocking"],
        ["--mode=handoff", "--wait=epoll", "--bind=unix:/run/x", "--bind=a:1"],
        ["--mode=reuseport", "--wait=epoll", "--bind=a:1", "--bind=b:1"],
        ["--bind=unix:/run/x", "--bind=a:1", "--wait=exclusive"],
        ["--wait=blocking"],
        ["--user=4000000000", "--group=0"],
    ],
)
def test_settings_that_agree_are_taken(argv: list[str], tmp_path: Path) -> None:
    assert list(contradictions(load_in(tmp_path, argv).config)) == []


def test_the_defaults_agree() -> None:
    assert list(contradictions(Config())) == []
    assert list(contradictions(Config(mode="reuseport"))) == []


def refusal(environ: Mapping[str, str]) -> str:
    try:
        load_in(Path("/"), [], environ)
    except GreeterdError as error:
        return str(error)
    return ""


@settings(deadline=None)
@given(st.sampled_from(NAMES), st.text())
def test_any_text_is_a_value_or_a_refusal_in_one_line(name: str, text: str) -> None:
    assert refusal({f"GREETERD_{name.upper()}": text}).isprintable()


# Directories


@pytest.mark.parametrize(
    ("environ", "log_dir", "source"),
    [
        ({}, "logs", "default"),
        ({"LOGS_DIRECTORY": ""}, "logs", "default"),
        ({"LOGS_DIRECTORY": "/var/log/g"}, "/var/log/g", "variable LOGS_DIRECTORY"),
        ({"LOGS_DIRECTORY": "/var/log/g:/b"}, "/var/log/g", "variable LOGS_DIRECTORY"),
        (
            {"LOGS_DIRECTORY": "/x", "GREETERD_LOG_DIR": "y"},
            "y",
            "variable GREETERD_LOG_DIR",
        ),
        ({"LOGS_DIRECTORY": "/x", "GREETERD_LOG_DIR": ""}, "/x", "variable LOGS_DIRECTORY"),
    ],
)
def test_logs_go_where_systemd_says_unless_a_setting_says_otherwise(
    environ: dict[str, str], log_dir: str, source: str, tmp_path: Path
) -> None:
    loaded = load_in(tmp_path, [], environ)
    assert loaded.config.log_dir == tmp_path / log_dir
    assert loaded.sources["log_dir"] == source


@pytest.mark.parametrize(
    ("uid", "environ", "run_dir", "source"),
    [
        (0, {}, "/run/greeterd", "default"),
        (1000, {}, "/tmp/greeterd-1000", "default"),
        (1000, {"TMPDIR": "/scratch"}, "/scratch/greeterd-1000", "default"),
        (0, {"XDG_RUNTIME_DIR": "/run/user/0"}, "/run/user/0/greeterd", "variable XDG_RUNTIME_DIR"),
        (1000, {"XDG_RUNTIME_DIR": "relative"}, "/tmp/greeterd-1000", "default"),
        (
            1000,
            {"XDG_RUNTIME_DIR": "/x", "RUNTIME_DIRECTORY": "/run/g:/run/h"},
            "/run/g",
            "variable RUNTIME_DIRECTORY",
        ),
        (0, {"GREETERD_RUN_DIR": "r"}, "{here}/r", "variable GREETERD_RUN_DIR"),
    ],
)
def test_the_run_directory_is_private_to_the_unit_the_session_or_the_user(
    uid: int, environ: dict[str, str], run_dir: str, source: str, tmp_path: Path
) -> None:
    loaded = load([], environ, directory=tmp_path, uid=uid)
    assert str(loaded.config.run_dir) == run_dir.format(here=tmp_path)
    assert loaded.sources["run_dir"] == source


def test_paths_are_relative_to_where_the_daemon_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text('log_dir = "a"')
    first = load(["--config", "file"], {})
    monkeypatch.chdir("/")
    assert load(["--config", "file"], {}, directory=tmp_path) == first
    assert first.config.log_dir == tmp_path / "a"


# What a reload may change


def test_the_greatest_identity_of_the_kernel_is_taken(tmp_path: Path) -> None:
    """One more is (uid_t) -1, which means: leave it as it is."""
    loaded = load_in(tmp_path, ["--user=4294967294", "--group=4294967294"])
    assert (loaded.config.user, loaded.config.group) == ("4294967294", "4294967294")


def test_a_reload_may_not_change_what_was_made_at_the_start() -> None:
    made = {"mode", "bind", "backlog", "wait", "daemonize", "run_dir", "user", "group"}
    assert made | {"umask", "unix_mode"} == FIXED


@pytest.mark.parametrize("name", NAMES)
def test_a_difference_is_fixed_if_a_reload_may_not_make_it(name: str) -> None:
    old = Config()
    values = (kind(name).parse(text) for text in TEXTS[name])
    value = next(value for value in values if value != getattr(old, name))
    changes: dict[str, Any] = {name: value}
    assert fixed_differences(old, replace(old, **changes)) == [name] * (name in FIXED)
    assert fixed_differences(old, old) == []


@pytest.mark.parametrize("mode", ["reuseport", "handoff"])
def test_a_mode_that_passes_listeners_has_as_many_addresses_as_a_message(mode: Any) -> None:
    most = Config(mode=mode, bind=tuple(f"127.0.0.1:{port}" for port in range(1, 254)))
    assert list(contradictions(most)) == []
    more = replace(most, bind=(*most.bind, "127.0.0.1:254"))
    (found,) = contradictions(more)
    assert found.names == ("mode", "bind")
    assert found.reason.endswith("so has 253 addresses at most")
    assert list(contradictions(replace(more, mode="inherit"))) == []


# Derived values


def test_auto_waits_in_turn_on_a_shared_listener_and_by_epoll_on_its_own() -> None:
    assert Config().wait_strategy == "rotate"
    assert Config(mode="reuseport").wait_strategy == "epoll"
    assert Config(mode="handoff").wait_strategy == "epoll"
    assert Config(wait="blocking").wait_strategy == "blocking"


def test_pinned_cpus_are_those_of_the_affinity() -> None:
    assert Config(cpu_affinity="3,0-1").pinned_cpus == (3, 0, 1)
    assert Config().pinned_cpus == ()


def test_auto_is_a_worker_for_each_usable_cpu_up_to_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Config(workers=7).worker_count == 7
    assert Config().worker_count == min(usable_cpus(), 512)
    monkeypatch.setattr(greeterd.config.schema, "usable_cpus", lambda: 1024)
    assert Config().worker_count == 512


# The file that documents the settings


def example_with_every_line() -> str:
    lines = EXAMPLE.read_text().splitlines()
    return "\n".join(line.removeprefix("#") if line[1:2].isalpha() else line for line in lines)


def test_the_documented_file_lists_every_setting_in_the_order_of_the_code() -> None:
    assert tuple(tomllib.loads(example_with_every_line())) == NAMES


def test_the_documented_file_changes_nothing_as_it_stands(tmp_path: Path) -> None:
    loaded = load_in(tmp_path, file=EXAMPLE.read_text())
    assert replace(loaded, file=None) == load_in(tmp_path)


@pytest.mark.parametrize("environ", [{}, {"LOGS_DIRECTORY": "/l", "RUNTIME_DIRECTORY": "/r"}])
def test_every_line_of_the_documented_file_is_the_default(
    environ: dict[str, str], tmp_path: Path
) -> None:
    loaded = load_in(tmp_path, [], environ, example_with_every_line())
    assert loaded.config == load_in(tmp_path, [], environ).config
    directories = {"run_dir", "log_dir"}
    assert {name for name in NAMES if not loaded.sources[name].startswith("file")} == directories


def test_the_documented_file_has_the_groups_of_the_help_page() -> None:
    titles = [line[3:] for line in EXAMPLE.read_text().splitlines() if line.startswith("## ")]
    groups = [group.name for one in SETTINGS.values() for group in one.parameter.group]  # type: ignore[union-attr]
    assert titles == list(dict.fromkeys(groups))


@pytest.mark.parametrize("name", NAMES)
def test_the_documented_file_tells_unit_and_meaning_and_what_a_reload_may_change(
    name: str,
) -> None:
    blocks = EXAMPLE.read_text().split("\n\n")
    (block,) = [one for one in blocks if f"\n#{name} = " in one]
    prose = " ".join(line[2:] for line in block.splitlines() if line.startswith("# "))
    units = {
        "COUNT": ("Number", "Connections"),
        "CPUS": ("CPUs",),
        "DIRECTORY": ("Directory",),
        "MIB": ("MiB",),
        "NAME": ("names",),
    }
    unit = SETTINGS[name].parameter.metavar or ""
    assert any(word in prose for word in units.get(unit, (unit.capitalize(),)))
    assert ("Restart only." in prose) == (name in FIXED)


# The program


@pytest.mark.parametrize(
    ("system", "release", "fits"),
    [
        ("Linux", "6.18.0-generic", True),
        ("Linux", "4.5", True),
        ("Linux", "4.4.302", False),
        ("Linux", "3.10.0", False),
        ("Darwin", "24.1.0", False),
        ("Linux", "", False),
    ],
)
def test_another_system_than_linux_is_refused_in_plain_words(
    system: str, release: str, fits: bool
) -> None:
    reason = program.unsupported(system, release)
    assert (reason is None) == fits
    assert reason is None or reason == (
        f"greeterd needs Linux 4.5 or newer, this is {system} {release}"
    )


def test_the_program_runs_the_master_which_can_load_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []

    def run(config: Config, *, directory: Path, reload: Any, config_file: Path) -> int:
        assert directory == tmp_path
        monkeypatch.chdir("/")
        monkeypatch.setattr(os, "geteuid", lambda: 4000)
        config_file.write_text("workers = 2")
        ran.extend([config, reload()])
        return 70

    monkeypatch.setattr(
        "greeterd.system.inheritance.take_over", lambda: None
    )  # it is our own process
    start = ModuleType("greeterd.master.start")
    vars(start)["run"] = run
    monkeypatch.setitem(sys.modules, "greeterd.master.start", start)
    monkeypatch.setattr(sys, "argv", ["greeterd", "--config", "file"])
    for variable in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "LOGS_DIRECTORY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("workers = 1")
    assert program.main() == 70
    old, new = ran
    assert (old.workers, new.workers) == (1, 2)
    assert fixed_differences(old, new) == []
    assert old.log_dir == new.log_dir == tmp_path / "logs"
