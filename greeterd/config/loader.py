"""Loads the settings: each from a flag, else a variable, else the file, else its default.

cyclopts implements the precedence: its providers add tokens only where an earlier source has left
none, and a token knows its source. What cyclopts would accept is refused before it sees it: unknown
variables and keys, and TOML values of another type than the setting's.
`load` neither prints nor exits nor keeps state, so that a reload can call it again.
`Token.source` is "cli", "environment", "default" or the absolute path of the file.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final

from cyclopts import App, Argument, ArgumentCollection, CycloptsError, Group, Parameter, Token
from cyclopts.config import Dict
from cyclopts.exceptions import CoercionError, MissingArgumentError, UnusedCliTokensError

from greeterd import __version__
from greeterd.config.directories import default_log_dir, default_run_dir
from greeterd.config.file import parse_file, read_file, similar, unknown
from greeterd.config.schema import NAMES, Config, contradictions
from greeterd.config.types import SWITCH, kind_of
from greeterd.errors import ConfigError, GreeterdError, UsageError
from greeterd.system.escape import escape

PREFIX: Final = "GREETERD_"
COMPLETION: Final = "--install-completion"
CLI: Final = "cli"
ENVIRONMENT: Final = "environment"
DEFAULT: Final = "default"

_DEFAULTS: Final = Config()
_GENERAL: Final = Group.create_ordered("General")
_EPILOGUE: Final = (
    "Examples: greeterd --mode reuseport --workers 4 --reply; greeterd --config FILE --check;"
    " greeterd --daemonize --log-dir DIRECTORY.\n\n"
    f"Every setting is also a variable, as {PREFIX}MAX_NAME_BYTES, and a key of FILE, as"
    " max_name_bytes. A flag overrides a variable, a variable overrides the file."
)

Provider = Callable[[App, tuple[str, ...], ArgumentCollection], None]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and the source of each of its settings.

    `file` is the file that was read, absolute, and `content` its bytes; with `check` the program
    shall only print them.
    """

    config: Config
    sources: Mapping[str, str]
    file: Path | None
    content: bytes = field(compare=False)
    check: bool


def load(
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    directory: Path | None = None,
    uid: int | None = None,
) -> Loaded:
    """Return the effective configuration; blocks for the file and the user database.

    Relative paths start at `directory` (absolute), and the default of `run_dir` is that of `uid`. A
    reload passes the values of the start: by then the daemon may have changed directory and user.

    Raises:
        UsageError: the command line is wrong.
        ConfigError: a variable, the file or the combination is wrong.
    """
    here = Path.cwd() if directory is None else directory
    owner = os.geteuid() if uid is None else uid
    sources = dict.fromkeys(NAMES, DEFAULT)

    def note_sources(_app: App, _: tuple[str, ...], arguments: ArgumentCollection) -> None:
        given = (one for one in arguments if one.field_info.name in sources and one.tokens)
        sources.update((one.field_info.name, _source(one.tokens[0])) for one in given)

    variables = Dict(_variables(environ), source=ENVIRONMENT)
    contents: list[bytes] = []
    app = _app(variables, _file(here, contents), _directories(environ, owner), note_sources)
    try:
        command, bound, _ = app.parse_args(list(argv))
    except CycloptsError as error:
        raise _refusal(error) from error
    if command is not _command:
        raise UsageError(escape(f"unexpected argument: {argv[0]}"))
    config: Config = bound.arguments["config"]
    places = {name: getattr(config, name) for name in ("run_dir", "log_dir")}
    relative = [name for name, path in places.items() if not path.is_absolute()]
    if relative and not here.is_dir():
        # It is not created: a release that was removed must not come back.
        settings = ", ".join(f"{name} = {places[name]}" for name in relative)
        raise ConfigError(
            escape(f"{settings}: relative to {here}, which is no directory (any more)")
        )
    config = replace(config, **{name: here / path for name, path in places.items()})
    for one in contradictions(config):
        settings = ", ".join(f"{name} ({sources[name]})" for name in one.names)
        raise ConfigError(escape(f"{settings}: {one.reason}"))
    file: str = bound.arguments.get("file", "")
    return Loaded(
        config,
        sources,
        here / file if file else None,
        b"".join(contents),
        check=bound.arguments.get("check", False),
    )


def print_help() -> None:
    """Write the help page to standard output."""
    _app().help_print([])


def install_completion(argv: Sequence[str]) -> None:
    """Write a completion script, for a command line that begins with COMPLETION.

    Raises:
        UsageError: the rest of it is wrong.

    """
    try:
        _app()(list(argv))
    except CycloptsError as error:
        raise UsageError(escape(str(error))) from error


def to_toml(loaded: Loaded) -> str:
    """Return the effective configuration as a file with the same effect; sources are comments."""
    settings = _settings(_app().assemble_argument_collection())
    rows = {
        name: f"{name} = {kind_of(one.parameter).to_toml(getattr(loaded.config, name))}"
        for name, one in settings.items()
    }
    width = max(map(len, rows.values()))
    here = {"workers": loaded.config.worker_count, "wait": loaded.config.wait_strategy}
    lines: list[str] = []
    for name, row in rows.items():
        source = escape(loaded.sources[name])
        is_auto = name in here and getattr(loaded.config, name) == "auto"
        meant = f", {here[name]} here" if is_auto else ""
        lines.append(f"{row:{width}}  # {source}{meant}")
    return "\n".join(lines)


def _app(*providers: Provider) -> App:
    app = App(
        "greeterd",
        help="A pre-fork server that greets every client by name.",
        help_epilogue=_EPILOGUE,
        version=__version__,
        config=providers,
        print_error=False,
        exit_on_error=False,
        verbose=False,
    )
    # No .bashrc is edited: bash-completion and fish find the script, for zsh it prints what to add.
    app.register_install_completion_command(
        COMPLETION,
        add_to_startup=False,
        help="Write a completion script where bash, zsh or fish looks for it.",
    )
    app["--help"].group = app["--version"].group = app[COMPLETION].group = _GENERAL
    app.default(_command)
    return app


def _command(
    *,
    config: Annotated[Config, Parameter(name="*")] = _DEFAULTS,
    file: Annotated[
        str,
        Parameter(
            name="--config",
            group=_GENERAL,
            metavar="FILE",
            show_default=False,
            help="TOML file of settings.",
        ),
    ] = "",
    check: Annotated[
        bool,
        Parameter(
            group=_GENERAL,
            converter=SWITCH,
            negative=(),
            show_default=False,
            help="Print the effective settings, each with its source, and exit.",
        ),
    ] = False,
) -> None:
    """Stand for the program: cyclopts reads this signature, and never calls it."""


def _settings(arguments: ArgumentCollection) -> dict[str, Argument]:
    found = {one.field_info.name: one for one in arguments}
    return {name: found[name] for name in NAMES}


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of settings, by key."""
    known = ("config", *NAMES)
    found: dict[str, str] = {}
    for name in sorted(name for name in environ if name.startswith(PREFIX)):
        key = name.removeprefix(PREFIX).lower()
        if key not in known or name != _variable(key):
            meant = [_variable(one) for one in similar(key, known)]
            raise ConfigError(escape(f"variable {name}: {unknown(meant)}"))
        found[key] = environ[name]
    return found


def _file(here: Path, contents: list[bytes]) -> Provider:
    """Return the provider of the file that `--config` or its variable names, if one does.

    It adds the content of the file to `contents`.
    """

    def provide(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        chosen = arguments["--config"].tokens
        if chosen and chosen[0].value:
            path = here / chosen[0].value
            contents.append(read_file(path))
            settings = _settings(arguments)
            types = {name: kind_of(one.parameter) for name, one in settings.items()}
            keys = parse_file(path, contents[-1], types)
            Dict(keys, source=str(path))(app, commands, arguments)

    return provide


def _directories(environ: Mapping[str, str], uid: int) -> Provider:
    """Return the provider of the directories that were not set.

    Their values depend on the environment, so they are no defaults of `Config`. The empty text asks
    for them, too.
    """

    def provide(_app: App, _: tuple[str, ...], arguments: ArgumentCollection) -> None:
        defaults = {"log_dir": default_log_dir(environ), "run_dir": default_run_dir(environ, uid)}
        for name, (path, variable) in defaults.items():
            argument = _settings(arguments)[name]
            if not any(one.value for one in argument.tokens):
                source = ENVIRONMENT if variable else DEFAULT
                argument.tokens[:] = [Token(keyword=variable, value=path, source=source)]

    return provide


def _source(token: Token) -> str:
    """Return the source of a token, as `--check` shows it."""
    keyword = token.keyword or ""
    if token.source == CLI:
        return f"flag {keyword}"
    if token.source == ENVIRONMENT:
        # The provider writes the key in brackets; variables of systemd and XDG have none.
        key = keyword.strip("[]")
        return f"variable {keyword if key == keyword else _variable(key)}"
    return DEFAULT if token.source == DEFAULT else f"file {token.source}"


def _refusal(error: CycloptsError) -> GreeterdError:
    """Return our error for one of cyclopts: its source, and the reason."""
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return UsageError(escape(f"unexpected argument: {error.unused_tokens[0]}"))
    argument = error.argument
    if isinstance(error, CoercionError) and argument is not None:
        token = error.token or argument.tokens[0]
        reason = str(error.msg) if error.msg else kind_of(argument.parameter).refusal(token.value)
        where = _source(token)
        if token.source not in {CLI, ENVIRONMENT, DEFAULT}:
            where += f", key {argument.field_info.name}"
        kind = UsageError if token.source == CLI else ConfigError
        return kind(escape(f"{where}: {reason}"))
    if isinstance(error, MissingArgumentError) and argument is not None:
        is_setting = argument.field_info.name in NAMES
        words = kind_of(argument.parameter).words if is_setting else "a file"
        return UsageError(escape(f"flag {argument.name}: must be {words}, and has no value"))
    text = str(error)
    return UsageError(escape(text[:1].lower() + text[1:].removesuffix(".")))


def _variable(key: str) -> str:
    return PREFIX + key.upper()
