"""systemd/README.md: the commands and files of an installation are those that there are."""

from tests.documents import ROOT, SYSTEMD


def test_the_unit_is_installed_as_its_head_says() -> None:
    head = (ROOT / "systemd" / "greeterd.service").read_text().partition("[Unit]")[0]
    commands = SYSTEMD.block("As a service", "sh", "python3").replace(
        "install .\n", "install greeterd\n"
    )
    assert [one for one in commands.splitlines() if f"#   {one}" not in head.splitlines()] == []


def test_every_file_for_an_installation_is_in_the_table() -> None:
    files = [path for name in ("systemd", "conf") for path in (ROOT / name).iterdir()]
    others = {f"{path.parent.name}/{path.name}" for path in files if path.name != "README.md"}
    assert set(SYSTEMD.column("Files")) == others - {"conf/greeterd.toml"}
