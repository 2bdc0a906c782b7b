"""Reads the configuration file: TOML, every key a setting, every value of the setting's type."""

import difflib
import errno
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from greeterd.config.types import SettingType
from greeterd.errors import ConfigError, ResourceError
from greeterd.system.escape import escape

MAX_FILE_BYTES: Final = 2**20
"""Far above any file of settings; bounds what a wrong path costs, also at a reload."""

_WRONG_PATH: Final = frozenset({
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES,
})  # fmt: skip
"""Errors that mean that the path is wrong; they do not pass by themselves."""


def read_file(path: Path) -> bytes:
    """Return the content of a configuration file; never waits for a writer.

    Raises:
        ConfigError: the path is wrong, or leads to no regular file (a FIFO, a device), or to one
            that is too large.
        ResourceError: it cannot be read, for another reason.

    """
    try:
        # Checked also before it is opened: to open a device can have side effects.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(escape(f"file {path}: not a regular file"))
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb") as file:  # noqa: PTH123
            regular = stat.S_ISREG(os.fstat(fd).st_mode)
            content = file.read(MAX_FILE_BYTES + 1) if regular else b""
    except OSError as error:
        kind = ConfigError if error.errno in _WRONG_PATH else ResourceError
        raise kind(escape(f"file {path}: {error.strerror}")) from error
    except ValueError as error:  # a NUL byte in the path
        raise ConfigError(escape(f"file {path}: {error}")) from error
    if not regular:
        raise ConfigError(escape(f"file {path}: not a regular file"))
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(escape(f"file {path}: larger than {MAX_FILE_BYTES} bytes"))
    return content


def parse_file(path: Path, content: bytes, types: Mapping[str, SettingType]) -> dict[str, Any]:
    """Return the keys of the file, each known and of its type.

    Raises:
        ConfigError: it is no TOML, or holds anything else.
    """
    try:
        keys = tomllib.loads(content.decode())
    except ValueError as error:  # bad TOML, bad UTF-8
        for key in re.findall(rb"^[ \t]*(\w+)[ \t]*(?:=[ \t]*)?(?:#.*)?$", content, re.MULTILINE):
            if (name := key.decode()) in types:
                words = types[name].words
                raise ConfigError(
                    escape(f"file {path}, key {name}: must be {words}, and has no value")
                ) from error
        raise ConfigError(escape(f"file {path}: {error}")) from error
    for key, value in keys.items():
        where = f"file {path}, key {key}"
        if key not in types:
            table = "tables are not used, settings stand at the top"
            reason = table if isinstance(value, dict) else unknown(similar(key, types))
            raise ConfigError(escape(f"{where}: {reason}"))
        if not types[key].accepts(value):
            raise ConfigError(escape(f"{where}: {types[key].refusal(value)}"))
    return keys


def similar(key: str, known: Iterable[str]) -> list[str]:
    """Return the known key that is most similar to this one, if one is."""
    return difflib.get_close_matches(key, list(known), n=1)


def unknown(meant: Iterable[str]) -> str:
    """Return the reason for refusing a key; `meant` are similar ones."""
    return "no such setting" + "".join(f"; did you mean {name}?" for name in meant)
