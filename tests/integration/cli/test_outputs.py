"""The files of a report take the place of nothing that is needed, and are whole or not there."""

import os
from pathlib import Path

import pytest

from greeterd.bench.experiment.store import StoreError
from greeterd.bench.model import Case
from greeterd.bench.report.export import read, to_json
from greeterd.cli.outputs import Outputs
from greeterd.errors import UsageError
from tests.bench_results import make_results

RESULTS = make_results([Case(greetings=400)])


@pytest.mark.parametrize("place", ["same", "link", "./sub/../same"])
@pytest.mark.parametrize("exists", [True, False])
def test_two_files_that_are_the_same_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, *, exists: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("link").symlink_to("same")
    if exists:
        Path("same").touch()
    with pytest.raises(UsageError, match="--html and --json are the same file"):
        Outputs(html=Path("same"), json=Path(place)).require()
    with pytest.raises(UsageError, match="--resume and --csv are the same file"):
        Outputs(csv=Path(place)).require({"--results": None, "--resume": Path("same")})
    Outputs(html=Path("same"), json=Path("other")).require({"--resume": Path("third")})
    assert Path("same").exists() == exists
    assert {one.name for one in tmp_path.iterdir()} == {"link", "sub"} | (
        {"same"} if exists else set()
    )


def test_what_cannot_be_written_costs_nothing_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    kept.write_text("before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="kept: No space left on device"):
            Outputs(json=kept).write(RESULTS)
    assert kept.read_text() == "before"
    assert list(tmp_path.iterdir()) == [kept]


def test_a_link_keeps_pointing_to_the_file_and_a_device_stays_one(tmp_path: Path) -> None:
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(file)
    outputs = Outputs(json=link, csv=Path("/dev/null"), html=Path("/dev/null"))
    outputs.require()
    outputs.write(RESULTS)
    assert link.is_symlink()
    assert file.read_text() == to_json(RESULTS)
    assert read(link) == RESULTS
    assert Path("/dev/null").is_char_device()
