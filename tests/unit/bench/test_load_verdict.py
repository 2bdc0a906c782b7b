"""When the client is said to have been the limit, and which options of a load contradict."""

from dataclasses import replace

import pytest

from greeterd.bench.load.bottleneck import Effort, find_bottleneck
from greeterd.bench.load.options import LoadOptions, check
from greeterd.errors import UsageError

IDLE = Effort(processes=2, wall=2.0, cpu=0.5)


def test_an_idle_client_was_not_the_limit() -> None:
    assert find_bottleneck(IDLE, {"reset": 5}, cpus=4) == ""


@pytest.mark.parametrize(
    ("effort", "cpus", "words"),
    [
        (
            IDLE._replace(cpu=1.9),
            4,
            "its 2 processes were busy 95 % of the time, and used 1.9 of 4",
        ),
        (IDLE._replace(cpu=1.2, waited=0.7), 2, "95 % of the time, 35 % waiting for a CPU, and"),
        (IDLE._replace(processes=8, wall=8.0, cpu=1.9), 2, "8 processes were busy 24 %"),
        (IDLE._replace(processes=1, wall=1.0, cpu=1.0), 2, "its 1 process was busy 100 %"),
    ],
)
def test_processes_that_were_never_idle_are_the_limit(
    effort: Effort, cpus: int, words: str
) -> None:
    assert words in find_bottleneck(effort, {}, cpus)


def test_a_moment_is_too_short_for_a_judgement() -> None:
    assert find_bottleneck(Effort(processes=2, wall=0.05, cpu=0.05), {}, cpus=2) == ""
    assert find_bottleneck(Effort(processes=1, wall=0.0, cpu=0.0), {}, cpus=2) == ""


def test_starts_that_came_late_are_told_with_the_worst() -> None:
    late = IDLE._replace(starts=1000, late=120, latest=0.0345)
    words = "12 % of the starts came more than 1 ms late, the worst 34.5 ms"
    assert words in find_bottleneck(late, {}, cpus=4)
    assert find_bottleneck(late._replace(late=10), {}, cpus=4) == ""


def test_ports_and_descriptors_that_ran_out_are_told() -> None:
    said = find_bottleneck(IDLE, {"no local port": 3, "no descriptor": 2}, cpus=4)
    assert "3 connections found no free port (more --sources)" in said
    assert "2 connections found no free descriptor (ulimit -n)" in said


GOOD = LoadOptions()


def test_the_defaults_are_bounded() -> None:
    assert str(check(GOOD)) == "127.0.0.1:12345"
    assert GOOD.greetings == 10_000
    assert replace(GOOD, duration=1.0).greetings is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (replace(GOOD, count=1, duration=1.0), "--count and --duration"),
        (replace(GOOD, name="a", name_bytes=1), "--name and --name-bytes"),
        (replace(GOOD, arrival="poisson"), "needs a --rate"),
        (replace(GOOD, rate=5.0), "--arrival closed is not"),
        (replace(GOOD, arrival="constant", rate=5.0, think=1.0), "--think is not of open loop"),
        (replace(GOOD, concurrency=0), "--concurrency must be 1 to"),
        (replace(GOOD, processes=0), "--processes must be"),
        (replace(GOOD, count=0), "--count must be"),
        (replace(GOOD, warmup=-1), "--warmup must be"),
        (replace(GOOD, destinations=0), "--destinations must be"),
        (replace(GOOD, duration=0.0), "--duration must be more than 0"),
        (replace(GOOD, timeout=float("nan")), "--timeout must be more than 0"),
        (replace(GOOD, life=float("nan")), "--life must be"),
        (replace(GOOD, address="127.0.0.1"), "it has no port"),
    ],
)
def test_options_out_of_range_and_such_that_exclude_each_other_are_refused(
    options: LoadOptions, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        check(options)
