"""conf/README.md says what the code says of each setting."""

import re
from dataclasses import fields
from typing import get_args

from greeterd.config.loader import _app, _settings
from greeterd.config.schema import Config, HandoffPolicy, Steering, Wait
from greeterd.config.types import kind_of
from tests.documents import ALL, CONF


def test_the_settings_are_those_of_the_code_with_default_unit_meaning_and_reload() -> None:
    shown = _settings(_app().assemble_argument_collection())
    wanted = []
    for one in fields(Config):
        parameter = shown[one.name].parameter
        meaning, _, default = one.metadata["help"].removesuffix("]").partition(" [default: ")
        default = default or f"`{kind_of(parameter).text(one.default)}`"
        unit = str(parameter.metavar or "").lower().replace("mib", "MiB")
        reload = "yes" if one.metadata["reload"] else "no"
        wanted.append([f"`{one.name}`", default, unit, reload, meaning])
    assert CONF.table("Settings") == wanted


def test_the_tables_of_values_are_those_of_the_settings() -> None:
    assert CONF.column("wait") == [one for one in get_args(Wait) if one != "auto"]
    for title, setting in (("steering", Steering), ("handoff_policy", HandoffPolicy)):
        first, *others = get_args(setting)
        assert CONF.column(title) == [f"{first} (default)", *others]


def test_every_setting_that_is_written_as_one_is_one() -> None:
    text = "\n".join(one.text for one in ALL)
    names = {one.name for one in fields(Config)}
    written = set(re.findall(r"`(\w+) = \w+`", text))
    assert written <= names
    flags = re.findall(r"greeterd (--[\w-]+(?: [\w-]+)*)", text)
    known = {f"--{name.replace('_', '-')}" for name in names} | {"--check", "--greeterd"}
    assert {word for one in flags for word in one.split() if word.startswith("--")} <= known
