"""A report has the answer first, with its ratio, and nothing that the figures do not have."""

import re
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from greeterd.bench.analysis.answers import Answer, answers
from greeterd.bench.analysis.rows import question, rows, sentence
from greeterd.bench.analysis.summary import summarise
from greeterd.bench.experiment.plan import compared
from greeterd.bench.model import Case, Objection, Results, Trial
from tests.bench_results import WIDE, make_results

CLOSED = [Case(greetings=2000), Case(mode="reuseport", greetings=2000)]


def told(results: Results, kind: str = "") -> list[Answer]:
    found = answers(results, summarise(results), rows(results))
    return [one for one in found if kind in {"", one.kind}]


def answer(results: Results) -> str:
    (one, *_) = told(results, "answer")
    return one.text


def only(results: Results, index: int, **fields: object) -> Results:
    """Return the results with something else in the trials of one case."""
    case = list(dict.fromkeys(one.case for one in results.trials))[index]
    trials = [replace(t, **fields) if t.case == case else t for t in results.trials]
    return replace(results, trials=trials)


def scaled(results: Results, index: int, factor: float) -> Results:
    """Return the results with one case's CPU time multiplied."""
    case = list(dict.fromkeys(one.case for one in results.trials))[index]

    def more(one: Trial) -> Trial:
        user, system = one.cpu_user_us or 0.0, one.cpu_system_us or 0.0
        return replace(one, cpu_user_us=factor * user, cpu_system_us=factor * system)

    trials = [more(one) if one.case == case else one for one in results.trials]
    return replace(results, trials=trials)


# The first question -------------------------------------------------------------------------


def test_what_is_asked_first_is_the_first_comparison() -> None:
    run = make_results(CLOSED)
    assert question(run) == ("Does reuseport take more CPU than inherit? (4 workers, 16 in flight)")
    assert question(make_results(CLOSED[:1])) == "What does a greeting cost?"


def test_equal_modes_are_the_same_within_the_precision() -> None:
    same = "reuseport takes the same CPU per greeting as inherit within 5 % ("
    (row,) = rows(make_results(CLOSED, 20, noise=0.03, seed=2))
    assert sentence(row, 0.05).startswith(same)
    assert sentence(row, 0.05).endswith(", 20 pairs).")
    (row,) = rows(scaled(make_results(CLOSED, 20, noise=0.01), 1, 1.03))
    assert " % more and within 5 % (1.0" in sentence(row, 0.05)
    assert "within" not in sentence(row, 0.01)


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (1.12, r"takes 12 % more CPU per greeting than inherit, at least 11\.\d % more \(1\.1"),
        (0.88, r"takes 12 % less CPU per greeting than inherit, at least 11\.\d % less \(0\.8"),
        (2.5, r"takes 2.5 times the CPU per greeting of inherit, at least 2.5 times \(2\.4"),
        (0.4, r"takes 0.4 times the CPU per greeting of inherit, at most 0.4 times \(0\.40"),
    ],
)
def test_a_difference_is_told_with_its_sign_its_ratio_and_what_it_is_at_least(
    factor: float, said: str
) -> None:
    found = answer(scaled(make_results(CLOSED, 40, noise=0.002), 1, factor))
    assert re.match(f"reuseport {said}", found), found


def test_what_is_not_decided_says_what_was_not_seen_and_how_long_it_would_take() -> None:
    said = answer(make_results(CLOSED, 5, noise=0.2))
    assert "no difference of CPU per greeting above " in said
    assert " more " in said
    assert said.endswith("would tell.")


def test_one_pair_finds_nothing() -> None:
    run = scaled(make_results(CLOSED, 1), 1, 3.0)
    assert answer(run).startswith("reuseport against inherit: one pair finds nothing (")
    assert told(run, "more") == []


def test_equal_runs_seldom_differ_in_what_is_tested_beside_cpu() -> None:
    wide = [replace(case, concurrency=c) for case in CLOSED for c in (1, 8, 16, 32, 64)]
    runs = [make_results(wide, 6, seed=seed) for seed in range(40)]
    assert sum(any(row.differing for row in rows(run)) for run in runs) <= 6  # 2 are to be expected


def test_what_is_decided_by_looks_asks_for_more_of_what_is_tested_beside_it() -> None:
    run = make_results(CLOSED, 20)
    fixed, looked = rows(run)[0], rows(replace(run, pairs=None))[0]
    assert looked.primary is not None
    assert fixed.primary is not None
    assert looked.primary.low < fixed.primary.low
    for name, one in fixed.others.items():
        assert looked.others[name].p_value >= one.p_value


def test_a_metric_that_differs_is_told_with_its_p_value() -> None:
    run = make_results(CLOSED, 20, noise=0.01)
    trials = [replace(t, rate=2 * t.rate) if t.case.mode == "reuseport" else t for t in run.trials]
    (said,) = told(replace(run, trials=trials), "more")
    assert said.text.startswith("reuseport: rate 99 % more (1.99")
    assert "p < 0.0001" in said.text


def limited(trial: Trial) -> Trial:
    """Return a trial whose client was the limit: as such, it has no rate."""
    said = "the client was the limit: its 2 processes were busy 99 % of the time"
    load = trial.load and replace(trial.load, bottleneck=said)
    return replace(trial, load=load, rate=0.0)


def test_a_trial_whose_client_was_the_limit_is_in_no_rate() -> None:
    run = make_results(CLOSED, 6)
    all_ = replace(run, trials=[limited(one) for one in run.trials])
    assert "rate" not in rows(all_)[0].others
    (caution,) = [one.text for one in told(all_, "caution") if "limit" in one.text]
    assert caution == (
        "In 12 of 12 trials the client may have been the limit, and they are in no rate: in one, "
        "its 2 processes were busy 99 % of the time."
    )
    some = [limited(one) if one.pair < 2 else one for one in run.trials]
    assert rows(replace(run, trials=some))[0].others["rate"].pairs == 4
    assert rows(run)[0].others["rate"].pairs == 6


def test_a_rate_that_the_client_sets_is_not_told() -> None:
    cases = [replace(one, arrival="poisson", rate=500.0) for one in CLOSED]
    assert "rate" not in rows(make_results(cases))[0].others


def test_modes_that_were_asked_different_things_are_not_compared() -> None:
    assert rows(make_results([CLOSED[0], replace(CLOSED[1], concurrency=1)])) == []


def test_builds_are_compared_by_name() -> None:
    cases = [Case(build="old"), Case(build="new")]
    said = answer(scaled(make_results(cases, 20, noise=0.01), 1, 1.3))
    assert "inherit of build new takes 29 % more" in said


# Pairs --------------------------------------------------------------------------------------


def test_a_pair_of_which_one_trial_is_invalid_is_in_no_comparison() -> None:
    run = make_results(CLOSED, 5)
    first, *others = run.trials
    (row,) = rows(replace(run, trials=[replace(first, invalid="it hung"), *others]))
    assert [pair[0].pair for pair in row.pairs] == [1, 2, 3, 4]
    assert all(a.case == CLOSED[0] and b.case == CLOSED[1] for a, b in row.pairs)


def test_a_case_that_was_objected_to_is_in_no_figure() -> None:
    run = make_results(CLOSED, 5)
    run = replace(run, objections=[Objection(case=CLOSED[1], reason="5 logged, and 4 at its end")])
    assert rows(run) == []
    assert [len(one.trials) for one in summarise(run)] == [5, 0]
    assert "reuseport is in no figure: 5 logged, and 4 at its end." in texts(told(run, "caution"))


def texts(some: Sequence[Answer]) -> list[str]:
    return [one.text for one in some]


# Faults -------------------------------------------------------------------------------------

STOPPED = Case(fault="stopped", mode="reuseport", arrival="poisson", rate=5000.0, greetings=2000)


def changed(results: Results, **fields: object) -> Results:
    return replace(results, trials=[replace(one, **fields) for one in results.trials])


def test_what_a_stopped_worker_costs_is_told_beside_its_share() -> None:
    bare = [replace(STOPPED, mode="inherit"), STOPPED, replace(STOPPED, rescue=False)]
    (said,) = texts(told(make_results(bare), "fault"))
    assert said.startswith("With one worker stopped: inherit, 4 workers, poisson 5,000/s: none of")
    assert "reuseport, 4 workers, poisson 5,000/s: none of" in said
    assert "reuseport without rescue, 4 workers, poisson 5,000/s: " in said
    assert "% ; 1/N is 25 %)".replace("% ;", "%;") in said


def test_handoff_with_and_without_rescue_are_two_names() -> None:
    cases = [replace(STOPPED, mode="handoff"), replace(STOPPED, mode="handoff", rescue=False)]
    (said,) = texts(told(make_results(cases), "fault"))
    assert said.count("handoff without rescue") == 1
    assert said.count("handoff") == 2


def test_kills_and_reloads_are_told_by_the_fault() -> None:
    run = make_results([replace(STOPPED, fault="killed"), replace(STOPPED, fault="reload")])
    killed, reload = texts(told(changed(run, faults=4, lost=0), "fault"))
    assert killed.startswith("With a worker killed each second: reuseport, 4 workers")
    # Of no faults lost in 20, less than 3 in 20 with 95 %.
    assert "none of 10,000 clients lost in 20 faults, less than 0.15 a fault" in reload
    killed, _ = texts(told(changed(run, faults=4, lost=20), "fault"))
    assert "100 of 10,000 clients lost in 20 faults, 5 a fault" in killed


# Advice -------------------------------------------------------------------------------------


def test_the_cheaper_one_is_advised_where_it_spreads_evenly() -> None:
    run = scaled(make_results(CLOSED, 20, noise=0.01), 1, 0.8)
    (said,) = texts(told(run, "advice"))
    assert "this machine: reuseport, wait epoll: it takes the least CPU, 0." in said
    tilted = only(run, 1, per_worker=[1500, 300, 100, 100])
    (said,) = texts(told(tilted, "advice"))
    assert "this machine: inherit, wait rotate: reuseport spreads unevenly" in said


def test_one_queue_is_advised_where_nothing_is_cheaper() -> None:
    for factor, why in ((1.3, "reuseport takes more CPU"), (1.0, "reuseport no less that matters")):
        run = scaled(make_results(CLOSED, 20, noise=0.01), 1, factor)
        (said,) = texts(told(run, "advice"))
        assert f"inherit, wait rotate: {why}" in said
        assert "one queue for all needs no rescue" in said


@pytest.mark.parametrize(
    "cases", [CLOSED[:1], [Case(build="a"), Case(build="b")], [Case(server="uvloop"), Case()]]
)
def test_without_a_choice_of_greeterd_there_is_no_advice(cases: list[Case]) -> None:
    run = make_results(cases, 5)
    run = replace(run, comparisons=compared(cases))
    assert told(run, "advice") == []


# Cautions -----------------------------------------------------------------------------------


def cautions(results: Results) -> str:
    return " ".join(texts(told(results, "caution")))


def test_what_makes_figures_doubtful_is_told() -> None:
    run = make_results(CLOSED, 6)
    assert cautions(run) == ""
    assert "not finished: there are 12 trials" in cautions(replace(run, finished=False))
    busy = replace(run, environment=replace(run.environment, load_average=3.0))
    assert "load average 3.00 on 4 CPUs" in cautions(busy)


def test_a_source_that_changed_between_trials_is_told() -> None:
    run = changed(make_results(CLOSED), commit="abc")
    assert cautions(run) == ""
    assert "changed between trials: abc, abc+." in cautions(only(run, 1, commit="abc+"))


def test_invalid_trials_are_counted_with_their_reasons() -> None:
    run = changed(make_results(CLOSED), invalid="the daemon died")
    assert told(run, "answer") == []
    assert "10 of 10 trials are invalid and left out: the daemon died (10)" in cautions(run)


def test_losses_without_a_fault_are_told() -> None:
    run = changed(make_results(CLOSED, 6), lost=500)
    assert cautions(run) == (
        "Clients were lost without a fault in 2 cases, at most 25 % (inherit, 4 workers, "
        "16 in flight)."
    )
    assert "without a fault" not in cautions(changed(make_results([STOPPED], 6), lost=500))


def test_every_sort_of_case_can_be_told_of() -> None:
    run = make_results([replace(case, greetings=500) for case in WIDE], 3)
    said = told(run)
    assert len([one for one in said if one.kind in {"answer", "more"}]) >= len(rows(run)) - 12
    assert len(texts(said)) == len(set(texts(said)))
