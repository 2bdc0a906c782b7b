"""An effect is told of where figures have it, denied where they have not, else not claimed."""

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from greeterd.bench.effects import Finding
from greeterd.bench.findings import find, not_measured
from greeterd.bench.model import Case, LoadReport, Results, Trial
from greeterd.bench.stats import summarise
from tests.bench_results import WIDE, make_results

CLOSED = [Case(greetings=2000), Case(mode="reuseport", greetings=2000)]


def found(results: Results) -> list[Finding]:
    """Return what is told, without the cautions."""
    told = find(results, summarise(results))
    return [one for one in told if one.kind != "caution"]


def about(results: Results, *words: str) -> list[Finding]:
    """Return what is told with these words in it."""
    return [one for one in found(results) if all(word in one.text for word in words)]


def cautions(results: Results) -> str:
    told = find(results, summarise(results))
    return " ".join(one.text for one in told if one.kind == "caution")


def changed(results: Results, **fields: object) -> Results:
    """Return the results with something else in every trial."""
    return replace(results, trials=[replace(one, **fields) for one in results.trials])


def only(results: Results, index: int, **fields: object) -> Results:
    """Return the results with something else in the trials of one case."""
    case = list(dict.fromkeys(one.case for one in results.trials))[index]
    trials = [replace(t, **fields) if t.case == case else t for t in results.trials]
    return replace(results, trials=trials)


def kinds(told: Sequence[Finding]) -> list[str]:
    return [one.kind for one in told]


def test_equal_modes_are_a_tie() -> None:
    assert (
        kinds(about(make_results(CLOSED, noise=0.01), "reuseport against inherit")) == ["tie"] * 2
    )


def test_a_faster_mode_is_told_with_its_ratio() -> None:
    run = make_results(CLOSED, noise=0.01)
    trials = [
        replace(t, rate=t.rate * 1.5, cpu_system_us=1.0) if t.case.mode == "reuseport" else t
        for t in run.trials
    ]
    rate, cpu = about(replace(run, trials=trials), "reuseport against inherit")
    assert (rate.kind, cpu.kind) == ("found", "found")
    assert "% faster, ratio 1.5" in rate.text
    assert "times less CPU" in cpu.text


def test_many_scenarios_of_two_modes_get_one_sentence() -> None:
    cases = [replace(case, workers=n) for case in CLOSED for n in (1, 2, 3, 4)]
    (rate, cpu) = about(make_results(cases, noise=0.01), "reuseport against inherit")
    assert "tie in 4 of 4 scenarios" in rate.text
    assert "tie in 4 of 4 scenarios" in cpu.text


def test_modes_that_were_asked_different_things_are_not_compared() -> None:
    cases = [CLOSED[0], replace(CLOSED[1], concurrency=1)]
    assert about(make_results(cases), "against") == []


HERD = Case(wait="epoll", greetings=2000)


def test_the_herd_of_epoll() -> None:
    run = make_results([HERD, CLOSED[0]])
    (told,) = about(run, "A herd with epoll")
    assert told.kind == "found"
    assert "inherit 0.01" in told.text
    (told,) = about(only(run, 0, wasted_wakeups=0.02), "herd")
    assert told.kind == "not shown"
    assert "does not show the herd" in told.text


EXCLUSIVE = Case(wait="exclusive", greetings=2000)


def test_the_imbalance_of_exclusive() -> None:
    run = make_results([EXCLUSIVE])
    (told,) = about(run, "exclusive favours workers")
    assert told.kind == "found"
    assert "worker 1 gets" in told.text
    (told,) = about(changed(run, per_worker=[500] * 4), "imbalance of exclusive")
    assert told.kind == "not shown"


@pytest.mark.parametrize("case", [CLOSED[0], CLOSED[1], replace(CLOSED[0], wait="blocking")])
def test_the_fairness_of_the_others(case: Case) -> None:
    run = changed(make_results([case]), per_worker=[500, 510, 490, 500])
    (told,) = about(run, "as even as chance or more")
    assert told.kind == "found"
    (told,) = about(changed(run, per_worker=[900, 500, 500, 100]), "less even than chance")
    assert told.kind == "not shown"
    (told,) = about(changed(run, per_worker=[5500, 5000, 5000, 4500]), "fair, if less even")
    assert told.kind == "found"


def test_the_handoff_bottleneck() -> None:
    cases = [
        Case(mode=mode, workers=n, greetings=2000)
        for mode in ("inherit", "handoff")
        for n in (1, 4)
    ]
    run = make_results(cases, noise=0.01)
    (told,) = about(run, "dispatcher", "bottleneck")
    assert told.kind == "found"
    assert "at 4 workers ratio 0.5" in told.text
    quick = only(only(run, 3, rate=60_000.0), 1, rate=60_000.0)
    (told,) = about(quick, "bottleneck")
    assert told.kind == "not shown"


STOPPED = Case(fault="stopped", mode="reuseport", greetings=2000)


def test_a_stopped_worker_without_rescue() -> None:
    run = make_results([replace(STOPPED, rescue=False)])
    (told,) = about(run, "about 1/N is lost")
    assert told.kind == "found"
    (told,) = about(changed(run, lost=0), "does not show a loss of 1/N")
    assert told.kind == "not shown"


@pytest.mark.parametrize("case", [STOPPED, replace(STOPPED, mode="inherit")])
def test_a_stopped_worker_that_costs_nobody(case: Case) -> None:
    run = make_results([case])
    assert kinds(about(run, "no client is lost")) == ["found"]
    assert kinds(about(changed(run, lost=2), "far less than 1/N")) == ["found"]
    assert kinds(about(changed(run, lost=400), "lost nevertheless")) == ["not shown"]


def test_kills_and_reloads() -> None:
    run = make_results([replace(STOPPED, fault="killed"), replace(STOPPED, fault="reload")])
    (told,) = about(run, "With a reload each second")
    assert "no client is lost (1 case)" in told.text
    (told,) = about(changed(run, lost=20), "With a worker killed each second")
    assert "clients lost: reuseport" in told.text


def test_a_peer_is_compared_by_its_cpu_time() -> None:
    run = make_results([CLOSED[0], replace(CLOSED[0], server="asyncio")], noise=0.01)
    (told,) = about(run, "asyncio against greeterd inherit")
    assert told.kind == "found"
    assert "times more" in told.text
    same = changed(run, cpu_user_us=5.0, cpu_system_us=15.0)
    assert kinds(about(same, "asyncio against greeterd inherit")) == ["tie"]


@pytest.mark.parametrize("case", [HERD, EXCLUSIVE, CLOSED[0], CLOSED[1], STOPPED])
def test_nothing_is_claimed_of_what_was_not_run(case: Case) -> None:
    others = {
        "herd": HERD, "exclusive": EXCLUSIVE, "bottleneck": None, "against": None,
        "stopped": STOPPED, "killed": None,
    }  # fmt: skip
    for word, own in others.items():
        if own != case:
            assert about(make_results([case]), word) == [], word


def test_what_was_not_measured_is_listed() -> None:
    assert len(not_measured(summarise(make_results([Case(server="uvloop", greetings=400)])))) == 6
    assert not_measured(summarise(make_results(WIDE, 1))) == []
    assert "the herd of epoll" not in not_measured(summarise(make_results([HERD])))


def test_invalid_trials_are_no_measurement() -> None:
    run = changed(make_results([HERD]), invalid="the daemon died")
    assert found(run) == []
    assert "the herd of epoll" in not_measured(summarise(run))
    assert "5 of 5 trials are invalid and left out: the daemon died (5)" in cautions(run)


def test_what_makes_figures_doubtful_is_told() -> None:
    run = make_results(CLOSED, 6)
    assert cautions(run) == ""
    assert "not finished: 12 of 20 trials" in cautions(replace(run, planned=20))
    busy = replace(run, environment=replace(run.environment, load_average=3.0))
    assert "load average 3.00 on 4 CPUs" in cautions(busy)
    assert "fewer than 6 valid trials" in cautions(make_results(CLOSED, 5))
    assert "94 % of cases" in cautions(make_results(CLOSED, 5))


def test_a_client_that_was_the_limit_is_told_once() -> None:
    def limited(trial: Trial) -> LoadReport | None:
        said = "the client was the limit: its 2 processes were busy 99 % of the time"
        return trial.load and replace(trial.load, bottleneck=said)

    run = make_results(CLOSED, 6)
    run = replace(run, trials=[replace(one, load=limited(one)) for one in run.trials])
    assert cautions(run) == (
        "In 12 of 12 trials the client, not the server, may have been the limit; in one, its 2 "
        "processes were busy 99 % of the time."
    )
