"""Results are kept as they come, and an interrupted experiment goes on where it was."""

from pathlib import Path

import pytest

from greeterd.bench.experiment import store
from greeterd.bench.experiment.plan import Plan
from greeterd.bench.experiment.store import Header, InUseError, StoreError, UnusableError
from greeterd.bench.model import Case, Comparison, Environment, Held, Objection, Trial

CASES = (Case(), Case(mode="reuseport"))
PLAN = Plan(preset="quick", comparisons=[Comparison(a=CASES[0], b=CASES[1])], seed=3)
HEADER = Header(
    environment=Environment(date="2026", kernel="6", machine="x86_64", cpu="one", cpus=1), plan=PLAN
)
TRIALS = [
    Trial(case=CASES[order % 2], comparison=0, pair=order // 2, order=order, began="now")
    for order in range(4)
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def begin(path: Path, *trials: Trial) -> None:
    kept = store.create(path, HEADER)
    for trial in trials:
        kept.append(trial)
    kept.close()


def test_what_was_kept_is_read_as_results(path: Path) -> None:
    begin(path, TRIALS[0], TRIALS[1])
    found = store.load_results(path)
    assert found.trials == TRIALS[:2]
    assert (found.preset, found.seed, found.comparisons) == ("quick", 3, PLAN.comparisons)
    assert not found.finished


def test_all_that_a_run_finds_is_kept(path: Path) -> None:
    held = Held(case=CASES[0], kind="sample", per_process={7: 3}, queued=1)
    said = Objection(case=CASES[1], reason="it did not end")
    kept = store.create(path, HEADER)
    for record in (TRIALS[0], held, said, store.End()):
        kept.append(record)
    kept.close()
    found = store.load_results(path)
    assert (found.trials, found.held, found.objections) == ([TRIALS[0]], [held], [said])
    assert found.finished


def test_resuming_goes_on_with_the_next_pair(path: Path) -> None:
    begin(path, *TRIALS[:3])
    kept = store.resume(path)
    assert kept.pairs(0) == 2
    assert kept.pairs(1) == 0
    kept.append(TRIALS[3])
    kept.close()
    assert store.load_results(path).trials == TRIALS


def test_a_torn_tail_is_cut_off(path: Path) -> None:
    begin(path, TRIALS[0], TRIALS[1])
    path.write_bytes(path.read_bytes()[:-5])
    kept = store.resume(path)
    assert kept.trials == TRIALS[:1]
    kept.append(TRIALS[1])
    kept.close()
    assert store.load_results(path).trials == TRIALS[:2]


@pytest.mark.shows("exit 75 greeter")
def test_only_one_at_a_time_writes_a_file(path: Path) -> None:
    first = store.create(path, HEADER)
    with pytest.raises(InUseError, match=r"results\.jsonl is being written by another"):
        store.resume(path)
    with pytest.raises(InUseError, match="another"):
        store.create(path, HEADER)
    first.append(TRIALS[0])
    first.close()
    second = store.resume(path)
    with pytest.raises(InUseError, match="another"):
        store.resume(path)
    second.append(TRIALS[1])
    second.close()
    assert store.load_results(path).trials == TRIALS[:2]


def test_what_was_refused_is_not_held(path: Path) -> None:
    path.write_bytes(b"something\n")
    for _ in range(2):
        with pytest.raises(UnusableError, match="holds no results"):
            store.resume(path)
        with pytest.raises(UnusableError, match="is there already"):
            store.create(path, HEADER)


def test_a_file_that_holds_something_is_not_begun_again(path: Path) -> None:
    begin(path, TRIALS[0])
    with pytest.raises(UnusableError, match=r"--resume .*results\.jsonl"):
        store.create(path, HEADER)
    assert store.load_results(path).trials == TRIALS[:1]


@pytest.mark.parametrize("content", [b"", b"{", b'{"kind":"other"}\n', b"\xff\n"])
def test_what_is_no_file_of_results_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UnusableError, match="holds no results"):
        store.resume(path)


def test_results_of_another_format_are_refused(path: Path) -> None:
    begin(path)
    path.write_bytes(path.read_bytes().replace(b'"format":2', b'"format":3'))
    with pytest.raises(UnusableError, match="format 3"):
        store.resume(path)


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        store.create(tmp_path / "none" / "results.jsonl", HEADER)
    with pytest.raises(StoreError, match="No such file"):
        store.resume(tmp_path / "results.jsonl")


def test_a_full_disk_is_told() -> None:
    with pytest.raises(StoreError, match="No space left"):
        store.create(Path("/dev/full"), HEADER)
