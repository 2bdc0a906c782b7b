"""`greeterctl balance`: what is counted in logs, and how a balance is shown."""

import gzip
import io
import json
from pathlib import Path

import msgspec
import pytest

from greeterd.balance import measure
from greeterd.cli import balance, greeterctl
from greeterd.cli.balance import (
    GreetingCounts,
    LogError,
    count_daemon,
    count_logs,
    render,
    to_plain,
)
from greeterd.control.status import SlotCounters, Status, total


def record(worker: object, name: str = "Alice") -> str:
    """Return a line of a greeting log."""
    told = {"event": "greeting", "greeting": f"Hello, {name}", "name": name, "worker": worker}
    return json.dumps(told) + "\n"


def shown(tally: GreetingCounts, encoding: str = "utf-8") -> list[str]:
    """Return the lines of a balance in a pipe."""
    return render(tally, io.TextIOWrapper(io.BytesIO(), encoding=encoding)).splitlines()


def daemon(**changes: object) -> Status:
    """Return the status of a daemon whose workers have greeted 30 and 10 times."""
    counters = {2: SlotCounters(greetings=10), 1: SlotCounters(greetings=30, connections=99)}
    fields: dict[str, object] = {
        "version": "1.2.3", "pid": 4242, "mode": "reuseport", "wait": "epoll", "state": "running",
        "generation": 1, "since": 0.0, "uptime": 61.0, "addresses": [], "workers": [],
        "counters": counters, "totals": total(counters.values()),
    }  # fmt: skip
    return Status(**(fields | changes))  # type: ignore[arg-type]


# Counting -----------------------------------------------------------------------------------


def test_records_are_counted_by_worker_over_all_logs(tmp_path: Path) -> None:
    one, other = tmp_path / "worker-1.log", tmp_path / "old"
    one.write_text(record(1) * 3)
    other.write_text(record(2) + record(1))
    tally = count_logs([one, other])
    assert tally.greetings == {1: 4, 2: 1}
    assert tally.heading == "2 logs: 5 greetings, 2 workers"
    assert (tally.foreign, tally.torn) == (0, 0)


def test_a_compressed_log_is_read_too(tmp_path: Path) -> None:
    log = tmp_path / "worker-3.log.1.gz"
    log.write_bytes(gzip.compress((record(3) * 5).encode()))
    assert count_logs([log]).greetings == {3: 5}


@pytest.mark.parametrize("name", ["worker-12.log", "worker-12.log.1"])
def test_an_idle_worker_is_known_by_the_name_of_its_empty_log(tmp_path: Path, name: str) -> None:
    idle, busy = tmp_path / name, tmp_path / "worker-1.log"
    idle.touch()
    busy.write_text(record(1))
    assert count_logs([idle, busy]).greetings == {1: 1, 12: 0}


def test_records_say_whose_they_are_and_not_the_name_of_their_log(tmp_path: Path) -> None:
    log = tmp_path / "worker-1.log"
    log.write_text(record(7))
    assert count_logs([log]).greetings == {7: 1}


def test_what_is_no_record_is_counted_apart(tmp_path: Path) -> None:
    log = tmp_path / "worker-1.log"
    foreign = ['{"event": "ready"}\n', "{}\n", "[1]\n", "\n", "words\n", record(0), record("1")]
    foreign += [record(513), record(1)[:30] + record(1)]
    log.write_bytes(
        b"\xff\x00\n" + "".join([*foreign, record(1)]).encode() + record(1)[:-1].encode()
    )
    tally = count_logs([log])
    assert (tally.greetings, tally.foreign, tally.torn) == ({1: 1}, len(foreign) + 1, 1)
    assert shown(tally)[-2:] == [
        "not counted: 10 lines that hold no greeting record",
        "not counted: 1 torn line",
    ]


def test_a_file_without_lines_is_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balance, "LONGEST_LINE", 1000)
    log = tmp_path / "worker-1.log"
    log.write_bytes(bytes(4500) + b"\n" + record(1).encode())
    tally = count_logs([log])
    assert (tally.greetings, tally.foreign, tally.torn) == ({1: 1}, 1, 4)


def test_logs_without_a_record_or_a_workers_name_are_refused(tmp_path: Path) -> None:
    log = tmp_path / "greeterd.log"
    log.write_text('{"event": "ready"}\n{"eve')
    with pytest.raises(LogError, match="no greeting record among 2 lines"):
        count_logs([log])


@pytest.mark.shows("command balance refused")
def test_what_cannot_be_read_is_told_with_its_reason(tmp_path: Path) -> None:
    false, short = tmp_path / "false.gz", tmp_path / "short.gz"
    false.write_text(record(1))
    short.write_bytes(gzip.compress((record(1) * 99).encode())[:-20])
    for path, reason in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (false, "Not a gzipped file"),
        (short, "ended before the end"),
    ):
        with pytest.raises(LogError, match=reason) as caught:
            count_logs([path])
        assert str(path) in str(caught.value)


def test_a_daemon_is_told_by_its_greetings_in_the_order_of_slots() -> None:
    tally = count_daemon(daemon())
    assert list(tally.greetings.items()) == [(1, 30), (2, 10)]
    assert tally.heading == (
        "greeterd pid 4242, reuseport (epoll), up 1m01s: 40 greetings, 2 workers"
    )


def test_the_slot_that_hands_connections_on_is_no_worker() -> None:
    counters = {0: SlotCounters(connections=9), 1: SlotCounters(greetings=9)}
    assert count_daemon(daemon(counters=counters)).greetings == {1: 9}


# Showing ------------------------------------------------------------------------------------


def test_a_balance_is_a_table_the_figures_and_a_sentence() -> None:
    chance = measure([250, 1000]).chance
    assert shown(GreetingCounts("here", "daemon", {1: 250, 2: 1000})) == [
        "here",
        "",
        "worker greetings share of fair",
        "     1       250 20.0%    0.40 ███████▌",
        "     2      1000 80.0%    1.60 ██████████████████████████████",
        "",
        "                         measured chance alone, 95 of 100 times",
        f"max/min                    4.0000 at most {chance.max_over_min:.4f}",
        "coefficient of variation  0.60000 at most 0.05544",
        "Jain index               0.735294 at least 0.996936",
        f"Gini coefficient          0.30000 at most {chance.gini:.5f}",
        "chi-square                450.000 at most 3.841",
        "p-value                  < 0.0001 at least 0.0500",
        "",
        "worker 2 gets 1.6 times its share",
    ]


def test_a_p_value_is_never_nothing() -> None:
    lines = shown(GreetingCounts("here", "daemon", {1: 10**9, 2: 0}))
    (line,) = (line for line in lines if line.startswith("p-value"))
    assert line.split() == ["p-value", "<", "0.0001", "at", "least", "0.0500"]


def test_an_infinite_ratio_is_a_word() -> None:
    lines = shown(GreetingCounts("here", "daemon", {1: 0, 2: 100}))
    assert lines[7].startswith("max/min                  infinite at most 1.")


@pytest.mark.parametrize("greetings", [{1: 0, 2: 0}, {1: 9}])
def test_figures_that_say_nothing_are_left_out(greetings: dict[int, int]) -> None:
    lines = shown(GreetingCounts("here", "daemon", greetings))
    assert not [line for line in lines if "Jain" in line]
    assert lines[-1] in {"nothing was counted", "one worker has all"}


def test_bars_are_ascii_where_nothing_else_can_be_written() -> None:
    lines = shown(GreetingCounts("here", "daemon", {1: 50, 2: 100}), encoding="ascii")
    assert lines[3].endswith(" " + "#" * 15)
    assert "\n".join(lines).isascii()


def test_a_balance_in_a_pipe_is_no_wider_than_80_columns_and_has_no_colours() -> None:
    lines = shown(GreetingCounts("here", "daemon", {1: 10**12, 512: 1}))
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "\x1b" in line]


def test_json_has_all_that_the_text_has() -> None:
    tally = GreetingCounts("here", "logs", {3: 0, 4: 100}, foreign=2, torn=1)
    told = json.loads(msgspec.json.encode(to_plain(tally)))
    assert told["source"] == "logs"
    assert told["total"] == 100
    assert told["workers"] == [
        {"worker": 3, "greetings": 0, "share": 0.0, "ratio": 0.0},
        {"worker": 4, "greetings": 100, "share": 1.0, "ratio": 2.0},
    ]
    assert told["found"] == {
        "max_over_min": None, "cv": 1.0, "jain": 0.5, "gini": 0.5, "chi_square": 100.0
    }  # fmt: skip
    assert set(told["chance"]) == set(told["found"])
    assert told["p_value"] < 1e-9
    assert (told["even"], told["sentence"]) == (False, "worker 4 gets all, the other nothing")
    assert (told["foreign_lines"], told["torn_lines"]) == (2, 1)


# The command --------------------------------------------------------------------------------


def test_the_command_counts_logs_without_a_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "worker-1.log").write_text(record(1))
    (tmp_path / "worker-2.log").write_text(record(2))
    logs = [str(log) for log in sorted(tmp_path.iterdir())]
    assert greeterctl.main(["balance", *logs]) == 0
    assert capsys.readouterr().out.startswith("2 logs: 2 greetings, 2 workers\n")
    assert greeterctl.main(["balance", "--json", *logs]) == 0
    assert json.loads(capsys.readouterr().out)["total"] == 2


def test_the_command_says_what_cannot_be_read_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = str(tmp_path / "none")
    assert greeterctl.main(["balance", log]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == (
        "", f"greeterctl: balance: {log}: No such file or directory\n"
    )  # fmt: skip
    assert greeterctl.main(["balance", "--json", log]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["ok"], answer["code"]) == (False, 1)
