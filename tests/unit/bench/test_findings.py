"""An effect is told of where figures have it, denied where they have not, else not claimed."""

from collections.abc import Sequence
from random import Random

import pytest
from msgspec.structs import replace

from greeterd.bench.analysis.effects import Finding
from greeterd.bench.analysis.findings import find, not_measured
from greeterd.bench.analysis.stats import summarise
from greeterd.bench.model import Case, LoadReport, Results, Trial
from tests.bench_results import WIDE, make_results, spread

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
    trials = [replace(t, wasted_wakeups=0.05 * t.repeat) for t in run.trials]
    assert kinds(about(replace(run, trials=trials), "herd")) == ["cannot be told"]


EXCLUSIVE = Case(wait="exclusive", greetings=2000)


def test_the_imbalance_of_exclusive() -> None:
    run = make_results([EXCLUSIVE])
    (told,) = about(run, "exclusive favours workers")
    assert told.kind == "found"
    assert "worker 1 gets" in told.text
    (told,) = about(changed(run, per_worker=[500] * 4), "imbalance of exclusive")
    assert told.kind == "not shown"


def favouring_each_in_turn(run: Results) -> Results:
    """Return trials of which each favours another worker, so that their sum is even."""
    counts = [[3970 if slot == n else 10 for slot in range(4)] for n in range(4)]
    return replace(run, trials=[replace(t, per_worker=counts[t.repeat]) for t in run.trials])


def test_trials_that_favour_workers_in_turn_are_uneven() -> None:
    run = favouring_each_in_turn(make_results([EXCLUSIVE, CLOSED[0]], 4))
    assert kinds(about(run, "exclusive favours workers")) == ["found"]
    (told,) = about(run, "inherit is less even than chance")
    assert told.kind == "not shown"
    assert "Jain 0.2538 [0.2538, 0.2538], p below 0.0001" in told.text
    (one, _) = summarise(run)
    assert sorted(one.per_worker) == [10, 10, 10, 3970]


def test_of_too_few_greetings_no_evenness_is_claimed() -> None:
    cases = [replace(EXCLUSIVE, workers=64), replace(CLOSED[0], workers=4)]
    run = make_results(cases)
    counts = {64: [5] * 42 + [4] * 22, 4: [3, 1, 0, 0]}
    trials = [replace(t, per_worker=counts[t.case.workers]) for t in run.trials]
    run = replace(run, trials=trials)
    assert about(run, "imbalance") == about(run, "favours") == about(run, "even") == []
    few = [one.spread.sentence for one in summarise(run) if one.spread]
    assert few == ["too few to tell: 298 over 64 workers", "too few to tell: 4 over 4 workers"]


def test_what_chance_makes_of_few_greetings_and_many_workers_is_no_favour() -> None:
    run, random = make_results([replace(EXCLUSIVE, workers=64)]), Random(3)
    even = Case(workers=64)
    trials = [replace(t, per_worker=spread(even, 400, random)) for t in run.trials]
    run = replace(run, trials=trials)
    (told,) = about(run, "imbalance of exclusive")
    assert (told.kind, "Jain 0.8" in told.text) == ("not shown", True)


def test_steering_by_cpu_promises_no_evenness() -> None:
    run = changed(make_results([replace(CLOSED[1], steering="cpu")]), per_worker=[1970, 10, 10, 10])
    assert about(run, "even") == []


HASHED = [
    replace(CLOSED[1], workers=n, concurrency=c) for n in (2, 4, 8, 16) for c in (1, 8, 16, 32, 64)
]


def test_reports_of_perfect_hashing_seldom_find_it_uneven_or_taking_turns() -> None:
    uneven = turns = 0
    for seed in range(40):
        run = make_results(HASHED, 3, seed=seed)
        told = [one.spread for one in summarise(run) if one.spread]
        uneven += not all(one.even for one in told)
        turns += any("turns" in one.sentence for one in told)
    assert uneven <= 6  # 2 are to be expected, of 40
    assert turns <= 4


def test_reports_of_equal_modes_seldom_find_a_difference() -> None:
    cases = [replace(case, concurrency=c) for case in CLOSED for c in (1, 8, 16, 32, 64)]
    differ = 0
    for seed in range(40):
        run = make_results(cases, 3, seed=seed)
        differ += any(one.kind == "found" for one in about(run, "against inherit"))
    assert differ <= 6


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
    assert "4 workers, 16 in flight: ratio 0.5" in told.text
    quick = only(only(run, 3, rate=60_000.0), 1, rate=60_000.0)
    (told,) = about(quick, "bottleneck")
    assert told.kind == "not shown"


@pytest.mark.parametrize(("few", "many"), [(1, 1), (1, 2)])
def test_the_handoff_bottleneck_is_of_cases_that_are_asked_the_same(few: int, many: int) -> None:
    cases = [
        Case(mode=mode, workers=workers, concurrency=concurrency, greetings=2000)
        for mode in ("inherit", "handoff")
        for workers, concurrency in ((few, 16), (4, 64), (many, 64), (4, 16))
    ]
    told = about(make_results(list(dict.fromkeys(cases)), noise=0.01), "bottleneck")
    assert len(told) == 2
    assert {one.text.rpartition("; ")[2][:24] for one in told} == {
        "4 workers, 16 in flight:",
        "4 workers, 64 in flight:",
    }


def test_where_the_client_sets_the_pace_no_rate_is_told() -> None:
    cases = [
        Case(mode=mode, workers=n, arrival=arrival, rate=500.0 * n, greetings=2000)
        for mode in ("inherit", "handoff", "reuseport")
        for arrival in ("poisson", "burst")
        for n in (1, 4)
    ]
    run = make_results(cases, noise=0.01)
    assert about(run, "bottleneck") == about(run, "rate,") == []
    assert about(run, "reuseport against inherit, CPU") != []


STOPPED = Case(fault="stopped", mode="reuseport", arrival="poisson", rate=5000.0, greetings=2000)


def test_a_stopped_worker_without_rescue() -> None:
    run = make_results([replace(STOPPED, rescue=False)])
    (told,) = about(run, "about 1/N is lost")
    assert told.kind == "found"
    (told,) = about(changed(run, lost=0), "does not show a loss of 1/N")
    assert told.kind == "not shown"


@pytest.mark.parametrize("rescue", [True, False])
def test_a_closed_loop_tells_no_share_of_a_stopped_worker(*, rescue: bool) -> None:
    run = make_results([replace(STOPPED, rescue=rescue, arrival="closed", rate=0.0)])
    (told,) = about(changed(run, lost=20), "stopped")
    assert told.kind == "cannot be told"
    assert "see open loop" in told.text


@pytest.mark.parametrize("case", [STOPPED, replace(STOPPED, mode="inherit")])
def test_a_stopped_worker_that_costs_nobody(case: Case) -> None:
    run = make_results([case])
    assert kinds(about(run, "none of 12,500 clients is lost")) == ["found"]
    assert kinds(about(changed(run, lost=2), "far less than 1/N")) == ["found"]
    assert kinds(about(changed(run, lost=400), "lost nevertheless")) == ["not shown"]


def test_kills_and_reloads() -> None:
    run = make_results([replace(STOPPED, fault="killed"), replace(STOPPED, fault="reload")])
    (told,) = about(run, "With a reload each second")
    assert "none of 12,500 clients lost." in told.text
    (told,) = about(changed(run, faults=4), "With a reload each second")
    assert "none of 12,500 clients lost in 20 faults, less than 0.15 a fault" in told.text
    (told,) = about(changed(run, lost=20, faults=4), "With a worker killed each second")
    assert "100 of 12,500 clients lost in 20 faults, 5 a fault" in told.text


def test_a_peer_is_compared_by_its_cpu_time() -> None:
    run = make_results([CLOSED[0], replace(CLOSED[0], server="asyncio")], noise=0.01)
    (told,) = about(run, "asyncio against greeterd inherit")
    assert told.kind == "found"
    assert "times more" in told.text
    alone = replace(run, trials=[t for t in run.trials if t.repeat == 0])
    (told,) = about(alone, "asyncio against greeterd inherit")
    assert told.kind == "cannot be told"
    assert "[too few trials]" in told.text
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


def test_a_source_that_changed_between_trials_is_told() -> None:
    run = changed(make_results(CLOSED), commit="abc")
    assert "changed between trials" not in cautions(run)
    assert "changed between trials: abc, abc+." in cautions(only(run, 1, commit="abc+"))


def test_of_one_trial_no_share_of_medians_is_told() -> None:
    told = cautions(make_results(CLOSED, 1))
    assert "one trial alone tells nothing" in told
    assert " 0 %" not in told


def test_what_makes_figures_doubtful_is_told() -> None:
    run = make_results(CLOSED, 6)
    assert cautions(run) == ""
    assert "not finished: 12 of 20 trials" in cautions(replace(run, planned=20))
    busy = replace(run, environment=replace(run.environment, load_average=3.0))
    assert "load average 3.00 on 4 CPUs" in cautions(busy)
    assert "fewer than 6 valid trials" in cautions(make_results(CLOSED, 5))
    assert "94 % of cases" in cautions(make_results(CLOSED, 5))


def test_losses_without_a_fault_are_told() -> None:
    run = changed(make_results(CLOSED, 6), lost=625)
    assert cautions(run) == (
        "Clients were lost without a fault in 2 of 2 cases, at most 25 % (inherit, 4 workers, "
        "16 in flight): rates and CPU time are of those that were served."
    )
    assert "without a fault" not in cautions(changed(make_results([STOPPED], 6), lost=625))


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
