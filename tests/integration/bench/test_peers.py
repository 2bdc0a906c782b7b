"""What a peer is started by, and what is said when it cannot be."""

from pathlib import Path

import pytest

from greeterd.bench import extras, peers
from greeterd.bench.model import Case
from greeterd.bench.peers import compiled
from greeterd.errors import GreeterdError

needs_compiler = pytest.mark.skipif(compiled.compiler() is None, reason="there is no C compiler")


def test_without_a_compiler_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GreeterdError, match=r"no C compiler .* bare: install gcc \(") as caught:
        peers.command(Case(server="bare"), tmp_path / "logs", tmp_path / "build")
    assert caught.value.exit_code == 69


@needs_compiler
def test_a_program_is_compiled_once(tmp_path: Path) -> None:
    program = compiled.build("bare", tmp_path / "new")
    before = program.stat()
    assert compiled.build("bare", tmp_path / "new") == program
    assert program.stat().st_ino == before.st_ino
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["bare"]


@needs_compiler
def test_a_source_that_does_not_compile_is_told_with_the_compiler_s_last_words(
    tmp_path: Path,
) -> None:
    source = tmp_path / "wrong.c"
    source.write_text('#include "no-such-header.h"\n')
    with pytest.raises(GreeterdError, match=r"cannot compile wrong.c: .*terminated"):
        compiled.compile_program(source, tmp_path / "build")
    assert list((tmp_path / "build").iterdir()) == []


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case(), "greeterd is no peer"),
        (Case(server="asyncio", mode="handoff"), "asyncio has no mode handoff"),
    ],
)
def test_a_case_that_is_no_peer_s_is_refused(case: Case, reason: str, tmp_path: Path) -> None:
    with pytest.raises(GreeterdError, match=reason):
        peers.command(case, tmp_path, tmp_path)


def test_without_uvloop_it_is_said_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _name: None)
    with pytest.raises(GreeterdError, match=r"uvloop .* pip install 'greeterd\[bench\]'") as caught:
        peers.command(Case(server="uvloop"), tmp_path, tmp_path)
    assert caught.value.exit_code == 69


def test_counts_are_in_the_order_of_workers(tmp_path: Path) -> None:
    for worker, lines in ((1, 3), (2, 0), (10, 5)):
        (tmp_path / f"worker-{worker}.log").write_text("{}\n" * lines)
    assert peers.counts(tmp_path) == [3, 0, 5]
