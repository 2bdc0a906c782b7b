"""Expectations are read with care, and held against the figures of made-up results."""

import math
from pathlib import Path
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from greeterd.bench.analysis import expectations as predicates
from greeterd.bench.analysis.expectations import (
    KNOWN_EFFECTS,
    Predicate,
    Verdict,
    check,
    figures_of,
    parse,
    sentence,
)
from greeterd.bench.model import Case, Environment, LoadReport, Results, Trial
from greeterd.bench.report.sheets import effects
from greeterd.errors import UsageError

ENVIRONMENT = Environment(date="", kernel="", machine="", cpu="", cpus=2)
EXCLUSIVE = Case(wait="exclusive", concurrency=1)
UNEVEN, EVEN = [10, 0, 30, 3960], [1000, 1003, 997, 1000]


def trial(case: Case, **fields: Any) -> Trial:
    """Return a trial of a case that sent 1,000 greetings."""
    load = LoadReport(
        address="", arrival=case.arrival, processes=1, concurrency=1, seconds=1, sent=1000, ok=1000
    )
    return Trial(
        **{
            "case": case,
            "comparison": 0,
            "pair": 0,
            "order": 0,
            "began": "",
            "load": load,
            **fields,
        }
    )


def results(*trials: Trial) -> Results:
    return Results(environment=ENVIRONMENT, trials=list(trials))


def verdict(predicate: Predicate, *trials: Trial) -> Verdict:
    """Return what becomes of one expectation."""
    (found,) = check([predicate], results(*trials))
    return found


def expect(**fields: Any) -> Predicate:
    return Predicate(**{"name": "it is so", **fields})


def document(**changes: str) -> str:
    """Return a file of one expectation; a change to "" leaves a line out."""
    lines = {"name": '"it is so"', "metric": '"jain"', "op": '"<"', "value": "0.7"} | changes
    return "[[expect]]\n" + "\n".join(f"{key} = {text}" for key, text in lines.items() if text)


# The file


def test_a_file_is_read_as_it_is_written() -> None:
    (one,) = parse(document(where='{ wait = ["rotate", "epoll"], workers = 4 }', why='"of old"'))
    assert one == expect(
        metric="jain",
        op="<",
        value=0.7,
        where={"wait": ["rotate", "epoll"], "workers": 4},
        why="of old",
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"metric": '"jian"'}, "unknown metric 'jian': one of rate"),
        ({"metric": ""}, "missing required field `metric`"),
        ({"where": "{ wiat = 1 }"}, "where: a case has no 'wiat': it has server, build"),
        (
            {"where": '{ wait = "exclusiv" }'},
            "where: wait cannot be 'exclusiv': one of auto, rotate",
        ),
        ({"where": "{ workers = [4, true] }"}, "where: workers cannot be True: Expected `int`"),
        ({"where": "{ server = 5 }"}, "where: server cannot be 5: Expected `str`"),
        ({"where": "{ mode = [] }"}, "where: mode is one of nothing"),
        ({"value": "nan"}, "nothing is less or more than nan"),
        ({"op": '"between"', "value": "[1, nan]"}, "nothing is less or more than nan"),
        ({"than": "{ workers = [1, 2] }"}, r"than: workers cannot be \[1, 2\]"),
        ({"than": "{ colour = 1 }"}, "than: a case has no 'colour'"),
        ({"vlaue": "1"}, "unknown field `vlaue`"),
        ({"op": '"~"'}, "Invalid enum value '~'"),
        ({"value": '"0.7"'}, "Expected .*, got `str`"),
        ({"value": ""}, "'<' takes a value of one number"),
        ({"value": "[1, 2]"}, "'<' takes a value of one number"),
        ({"op": '"between"'}, "'between' takes a value of two rising numbers"),
        ({"op": '"between"', "value": "[2, 1]"}, "two rising numbers"),
        ({"op": '"between"', "value": "[1, 2, 3]"}, "Expected `array` of length 2"),
        ({"op": '"within null"'}, "'within null' takes neither value nor than"),
        ({"op": '"within null"', "metric": '"rate"', "value": ""}, "only balance has a null"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name_with_the_reason(
    changes: dict[str, str], reason: str
) -> None:
    with pytest.raises(UsageError, match=rf"^expectation 1 \(it is so\): .*{reason}"):
        parse(document(**changes))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", r"it has no \[\[expect\]\]"),
        ("expect = 3", r"it has no \[\[expect\]\]"),
        ("expect = [3]", r"expectation 1 \(without a name\): Expected `object`"),
        ("[[expects]]", "unknown key 'expects'"),
        (document(name=""), r"expectation 1 \(without a name\): .* missing required field `name`"),
        (document() + "\n" + document(), r"expectation 2 \(it is so\): another one has this name"),
    ],
)
def test_a_file_of_the_wrong_shape_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse(text)


def test_a_refusal_names_the_file(tmp_path: Path) -> None:
    missing, broken = tmp_path / "missing.toml", tmp_path / "broken.toml"
    with pytest.raises(UsageError, match=f"^{missing}: No such file"):
        predicates.load(missing)
    broken.write_text("[[expect")
    with pytest.raises(UsageError, match=f"^{broken}: Expected "):
        predicates.load(broken)
    broken.write_bytes(b'name = "\xff"')
    with pytest.raises(UsageError, match=f"^{broken}: .*utf-8"):
        predicates.load(broken)


# The verdicts


@pytest.mark.parametrize(
    ("op", "value", "held"),
    [
        ("<", 0.3, True),
        ("<", 0.25, False),
        ("<=", 0.25, True),
        ("<=", 0.2, False),
        (">", 0.2, True),
        (">", 0.25, False),
        (">=", 0.25, True),
        (">=", 0.3, False),
        ("between", (0.25, 0.5), True),
        ("between", (0.1, 0.25), True),
        ("between", (0.3, 0.5), False),
    ],
)
def test_each_comparison_tells_what_holds_from_what_does_not(
    op: str, value: Any, held: bool
) -> None:
    found = verdict(
        expect(metric="jain", op=op, value=value), trial(EXCLUSIVE, per_worker=[0, 0, 0, 9])
    )
    assert found.outcome == ("held" if held else "failed")
    assert found.findings[0].figures.startswith("0.25 " if held else "0.25 not ")


@pytest.mark.parametrize("metric", predicates.EVENNESS)
@pytest.mark.parametrize(("counts", "outcome"), [(EVEN, "held"), (UNEVEN, "failed")])
def test_the_null_tells_even_from_uneven(metric: str, counts: list[int], outcome: str) -> None:
    found = verdict(expect(metric=metric, op="within null"), trial(EXCLUSIVE, per_worker=counts))
    assert found.outcome == outcome
    assert ("within" if outcome == "held" else "outside") in found.findings[0].figures


def test_trials_that_are_uneven_each_in_their_own_way_are_outside_the_null() -> None:
    trials = [
        trial(Case(mode="reuseport"), per_worker=[970 if slot == n else 10 for slot in range(4)])
        for n in range(4)
    ]
    assert verdict(expect(metric="jain", op="within null"), *trials).outcome == "failed"


def test_of_many_cases_within_the_null_one_is_seldom_outside() -> None:
    random, failed, rounds = Random(5), 0, 60
    for _ in range(rounds):
        run = []
        for rate in range(20):
            drawn = random.choices(range(4), k=400)
            counts = [drawn.count(slot) for slot in range(4)]
            run.append(trial(Case(mode="reuseport", rate=rate), per_worker=counts))
        failed += verdict(expect(metric="jain", op="within null"), *run).outcome == "failed"
    assert failed <= 0.15 * rounds


def test_the_figure_is_the_median_of_the_valid_trials() -> None:
    trials = [trial(EXCLUSIVE, rate=rate) for rate in (100.0, 300.0, 200.0)]
    invalid = trial(EXCLUSIVE, rate=9000.0, invalid="the counts do not agree")
    found = verdict(expect(metric="rate", op="<", value=250), *trials, invalid)
    assert (found.outcome, found.trials) == ("held", 3)
    assert found.findings[0].figures == "200 < 250"


def test_it_fails_when_it_fails_in_one_of_its_cases() -> None:
    slow, fast = trial(EXCLUSIVE, rate=100.0), trial(Case(), rate=200.0)
    found = verdict(expect(metric="rate", op=">", value=150), slow, fast)
    assert found.outcome == "failed"
    assert [one.holds for one in found.findings] == [False, True]


def test_where_selects_by_value_and_by_list_and_leaves_the_rest_open() -> None:
    cases = [
        Case(workers=workers, mode=mode)
        for workers in (1, 2, 4)
        for mode in ("inherit", "reuseport")
    ]
    found = verdict(
        expect(metric="rate", op=">", value=0, where={"workers": [2, 4], "mode": "reuseport"}),
        *(trial(case, rate=1.0) for case in cases),
    )
    chosen = {(one.case.workers, one.case.mode) for one in found.findings}
    assert chosen == {(2, "reuseport"), (4, "reuseport")}


def test_a_case_with_wait_auto_is_one_with_the_strategy_in_force() -> None:
    auto = trial(Case(mode="inherit"), rate=1.0)
    found = verdict(expect(metric="rate", op=">", value=0, where={"wait": "rotate"}), auto)
    assert found.outcome == "held"
    assert (
        verdict(expect(metric="rate", op=">", where={"wait": "epoll"}, value=0), auto).outcome
        == "not tested"
    )


def test_than_compares_each_case_with_the_same_but_for_its_fields() -> None:
    trials = [
        trial(Case(mode=mode, workers=workers), cpu_user_us=cpu)
        for mode, workers, cpu in (
            ("inherit", 1, 10.0), ("inherit", 4, 20.0), ("handoff", 1, 15.0), ("handoff", 4, 26.0),
        )
    ]  # fmt: skip
    one = expect(
        metric="cpu_us", op=">", value=1.4, where={"mode": "handoff"}, than={"mode": "inherit"}
    )
    found = verdict(one, *trials)
    assert [finding.figures for finding in found.findings] == [
        "1.5 > 1.4 (15 over 10)",
        "1.3 not > 1.4 (26 over 20)",
    ]
    assert verdict(replace(one, value=None), *trials).outcome == "held"


def test_a_case_is_not_compared_with_itself() -> None:
    one, four = (trial(Case(workers=workers), rate=100.0 * workers) for workers in (1, 4))
    growing = expect(metric="rate", op=">", value=1.5, than={"workers": 1})
    assert [finding.case.workers for finding in verdict(growing, one, four).findings] == [4]
    assert verdict(growing, one).reason == "the counterpart is the case itself"


def test_what_has_no_counterpart_is_not_tested() -> None:
    found = verdict(
        expect(metric="rate", op="<", than={"workers": 1}), trial(Case(workers=4), rate=1.0)
    )
    assert (found.outcome, found.reason) == ("not tested", "no valid trial of the counterpart")


def test_a_handoff_policy_and_steering_do_not_hide_a_counterpart() -> None:
    trials = [
        trial(Case(mode="handoff", handoff_policy="least-busy"), rate=1.0),
        trial(Case(mode="inherit", wait="rotate"), rate=2.0),
    ]
    one = expect(metric="rate", op="<", where={"mode": "handoff"}, than={"mode": "inherit"})
    assert verdict(one, *trials).findings[0].figures == "0.5 < 1 (1 over 2)"


@pytest.mark.parametrize(("figure", "ratio"), [(0.0, 1.0), (2.0, math.inf)])
def test_a_ratio_to_nothing_is_told(figure: float, ratio: float) -> None:
    found = verdict(
        expect(
            metric="wasted_wakeups",
            op=">=",
            value=ratio,
            where={"wait": "epoll"},
            than={"wait": "blocking"},
        ),
        trial(Case(wait="epoll"), wasted_wakeups=figure),
        trial(Case(wait="blocking"), wasted_wakeups=0.0),
    )
    assert found.outcome == "held"


@pytest.mark.parametrize(
    ("trials", "reason"),
    [
        ([], "no such case was run"),
        ([trial(EXCLUSIVE, invalid="it died")], "no valid trial"),
        ([trial(EXCLUSIVE)], "not every trial tells jain"),
        ([trial(EXCLUSIVE), trial(EXCLUSIVE, per_worker=EVEN)], "not every trial tells jain"),
    ],
)
def test_what_was_not_run_is_not_tested(trials: list[Trial], reason: str) -> None:
    found = verdict(expect(metric="jain", op="<", value=1), *trials)
    assert (found.outcome, found.reason, found.trials) == ("not tested", reason, 0)
    assert predicates.exit_code([found]) == 0


def test_a_loss_of_a_share_each_is_one_whatever_the_number_of_workers() -> None:
    for workers in (2, 4, 8):
        case = Case(workers=workers)
        one = expect(metric="lost_share_times_workers", op="between", value=(0.99, 1.01))
        assert verdict(one, trial(case, lost=1000 // workers)).outcome == "held"


def test_every_metric_can_be_asked_for() -> None:
    one = trial(Case(), per_worker=EVEN)
    for metric in predicates.OF:
        assert verdict(expect(metric=metric, op=">=", value=0), one).outcome in {
            "held",
            "not tested",
        }


# What is shown


def test_the_table_has_a_row_for_each_that_was_tested() -> None:
    uneven = trial(EXCLUSIVE, per_worker=UNEVEN)
    verdicts = check(
        [
            expect(name="[bold]uneven[/]", metric="jain", op="<", value=0.7),
            expect(name="fair", metric="jain", op=">=", value=0.99),
            expect(name="of old", metric="rate", op="<", value=1, where={"workers": 64}),
        ],
        results(uneven),
    )
    assert effects(verdicts).groups[0].rows == [
        ("[bold]uneven[/]", "held", "jain 0.2551 < 0.7", ""),
        ("fair", "failed", "jain 0.2551 not >= 0.99", ""),
    ]
    assert figures_of(verdicts[2]) == ["no such case was run"]
    assert sentence(verdicts) == "1 of 2 tested expectations held. Failed: fair."
    assert predicates.exit_code(verdicts) == 1
    assert predicates.exit_code(verdicts[:1]) == 0


def test_cases_are_told_apart_and_the_failed_ones_come_first() -> None:
    trials = [trial(Case(workers=n), rate=100.0 * n) for n in range(1, 9)]
    (found,) = check([expect(metric="rate", op="<", value=650)], results(*trials))
    told = figures_of(found)
    assert told[0] == "workers 7: rate 700 not < 650"
    assert told.index(told[0]) < told.index("workers 1: rate 100 < 650")
    assert told[-1] == "and 4 cases more"


# The known effects


def test_the_known_effects_make_sense_and_say_why() -> None:
    known = predicates.load(KNOWN_EFFECTS)
    assert len(known) > 10
    assert all(one.why for one in known)


def test_the_known_effects_tell_a_world_that_has_them_from_one_that_has_not() -> None:
    stopped = Case(fault="stopped", arrival="poisson", rate=500.0)
    usual = [
        trial(EXCLUSIVE, per_worker=UNEVEN),
        trial(replace(EXCLUSIVE, wait="rotate"), per_worker=EVEN, wasted_wakeups=0.1),
        trial(replace(EXCLUSIVE, wait="epoll"), wasted_wakeups=1.7),
        trial(replace(EXCLUSIVE, wait="blocking"), per_worker=EVEN),
        trial(Case(mode="reuseport"), per_worker=EVEN),
        trial(Case(mode="handoff"), per_worker=EVEN, rate=1000.0, cpu_user_us=40.0),
        trial(Case(mode="handoff", workers=1), per_worker=[4000], rate=990.0, cpu_user_us=40.0),
        trial(Case(), rate=2000.0, cpu_user_us=20.0),
        trial(replace(stopped, mode="reuseport", rescue=False), lost=240),
        trial(replace(stopped, mode="reuseport")),
        trial(stopped),
        trial(Case(server="socketserver"), cpu_user_us=900.0),
        trial(Case(server="asyncio"), cpu_user_us=90.0),
        trial(Case(server="uvloop"), cpu_user_us=50.0),
        trial(Case(server="bare"), cpu_user_us=15.0),
    ]
    strange = [
        trial(EXCLUSIVE, per_worker=EVEN),
        trial(replace(EXCLUSIVE, wait="rotate"), per_worker=UNEVEN, wasted_wakeups=0.1),
        trial(replace(EXCLUSIVE, wait="epoll"), wasted_wakeups=0.01),
        trial(replace(EXCLUSIVE, wait="blocking"), per_worker=UNEVEN, wasted_wakeups=1.0),
        trial(Case(mode="reuseport"), per_worker=UNEVEN),
        trial(Case(mode="handoff"), per_worker=UNEVEN, rate=4000.0, cpu_user_us=20.0),
        trial(Case(mode="handoff", workers=1), per_worker=[4000], rate=990.0, cpu_user_us=20.0),
        trial(Case(), rate=2000.0, cpu_user_us=20.0),
        trial(replace(stopped, mode="reuseport", rescue=False)),
        trial(replace(stopped, mode="reuseport"), lost=240),
        trial(stopped, lost=240),
        *(
            trial(Case(server=server), cpu_user_us=20.0)
            for server in ("socketserver", "asyncio", "uvloop", "bare")
        ),
    ]
    effects = predicates.load(KNOWN_EFFECTS)
    assert {one.outcome for one in check(effects, results(*usual))} == {"held"}
    assert {one.outcome for one in check(effects, results(*strange))} == {"failed"}
