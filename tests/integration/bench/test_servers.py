"""What a trial's server leaves behind: nothing, whenever an interrupt comes."""

import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greeterd.bench.experiment.servers import temporary_directory


def interrupting(function: Callable[..., Any], when: str) -> Callable[..., Any]:
    """Return the function with an interrupt before or after it."""

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if when == "before":
            signal.raise_signal(signal.SIGINT)
        result = function(*arguments, **options)
        if when == "after":
            signal.raise_signal(signal.SIGINT)
        return result

    return interrupted


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("module", "name"), [(tempfile, "mkdtemp"), (shutil, "rmtree")])
def test_an_interrupt_leaves_no_temporary_directory_and_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, when: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, name, interrupting(getattr(module, name), when))
    with pytest.raises(KeyboardInterrupt), temporary_directory("x-") as directory:
        (directory / "file").touch()
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
