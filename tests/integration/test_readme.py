"""The README's commands are those that are run."""

import re

from tests.documents import README, ROOT


def commands() -> list[str]:
    """Return the code blocks of the quick start."""
    return [
        one.strip()
        for one in re.findall(r"```sh\n(.*?)```", README.section("Quick start"), re.DOTALL)
    ]


def test_the_quick_start_is_two_commands_of_a_line_each() -> None:
    assert len(commands()) == 2
    assert all("\n" not in command for command in commands())


def test_ci_ends_with_the_readme_s_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert script.read_text().splitlines()[-1] == commands()[1]
    assert script.stat().st_mode & 0o111
