"""Generations: which configuration is in force, and which are still needed."""

import pytest

from greeterd.config.schema import FIXED, Config
from greeterd.master.generations import Generations, fixed_settings, may_exit, policy_of
from greeterd.supervisor.actions import Finished, Spawn
from greeterd.supervisor.events import Closed, Exited, Ready, Reload, Spawned, SpawnFailed
from greeterd.supervisor.ids import DISPATCHER, NO_TICKET, Generation, Pid
from greeterd.supervisor.policy import Policy
from tests.unit.master.parts import Parts

OLD = Config(workers=2)


def reload(parts: Parts, generations: Generations, config: Config) -> Generation:
    """Begin a reload, without its outcome."""
    generation = generations.begin(config)
    parts.feed(Reload(generation, config.worker_count, Policy(), NO_TICKET, "reload"))
    return generation


def roll(parts: Parts, *, old_ends: bool = True) -> None:
    """Have each new worker ready, and the old one end, or accept no more."""
    while spawned := parts.take(Spawn):
        for each in spawned:
            old = [worker.id for worker in parts.supervisor.slots[each.slot].workers]
            parts.feed(Spawned(each.worker, Pid(1000 + each.worker)))
            parts.feed(Ready(each.worker, rss_bytes=0))
            for ident in old:
                if ident != each.worker:
                    end = Exited(ident, "exit status 0", 0) if old_ends else Closed(ident)
                    parts.feed(end)


def started() -> tuple[Parts, Generations]:
    generations = Generations(OLD, lambda: OLD, None)
    parts = Parts(workers=2, config=OLD, generations=generations)
    parts.start()
    return parts, generations


def test_a_reload_that_succeeded_is_in_force_and_the_old_generation_is_forgotten() -> None:
    parts, generations = started()
    new = Config(workers=2, max_age=9)
    generation = reload(parts, generations, new)
    assert (generation, generations[generation], generations.current) == (2, new, OLD)
    roll(parts)
    assert generations.conclude(parts.supervisor, "", 12.5) is new
    assert generations.current is new
    assert generations.result is not None
    assert (generations.result.ok, generations.result.error) == (True, None)
    assert (generations.result.generation, generations.result.at) == (2, 12.5)
    assert generations.result.took >= 0.0
    with pytest.raises(KeyError):
        generations[Generation(1)]


def test_many_reloads_leave_one_generation_known() -> None:
    parts, generations = started()
    for number in range(20):
        reload(parts, generations, Config(workers=2, max_age=number + 1))
        roll(parts)
        generations.conclude(parts.supervisor, "", 0.0)
    assert list(generations._configs) == [21]
    assert generations.last == 21


def test_a_generation_of_which_a_worker_still_leaves_is_known_until_the_next_reload() -> None:
    parts, generations = started()
    reload(parts, generations, Config(workers=2, max_age=9))
    roll(parts, old_ends=False)
    generations.conclude(parts.supervisor, "", 0.0)
    assert (parts.supervisor.generation, sorted(generations._configs)) == (2, [1, 2])
    for worker in list(parts.supervisor.workers):
        if worker.generation == 1:
            parts.feed(Exited(worker.id, "exit status 0", 0))
    reload(parts, generations, Config(workers=2, max_age=10))
    roll(parts)
    generations.conclude(parts.supervisor, "", 0.0)
    assert list(generations._configs) == [3]


def test_a_reload_that_failed_leaves_the_old_one_in_force_and_forgets_nothing() -> None:
    parts, generations = started()
    generation = reload(parts, generations, Config(workers=2, max_age=9))
    [spawn] = parts.take(Spawn)
    parts.feed(SpawnFailed(spawn.worker, "fork: no"))
    [finished] = parts.take(Finished)
    assert finished.reason
    assert generations.conclude(parts.supervisor, finished.reason, 0.0) is None
    assert generations.current is OLD
    assert generations.result is not None
    assert (generations.result.ok, generations.result.error) == (False, finished.reason)
    assert generations.result.generation == 1
    assert generations[Generation(1)] is OLD
    assert generations[generation] is not OLD, "a worker of it could still be there"


def test_the_generations_of_a_predecessor_have_what_is_in_force() -> None:
    generations = Generations(OLD, lambda: OLD, None, last=7)
    generations.adopt([5, 7])
    assert generations[Generation(5)] is generations[Generation(7)] is OLD
    assert generations.begin(OLD) == 8


def test_only_a_greeting_worker_whose_configuration_allows_it_may_exit() -> None:
    allowed, forbidden = Config(allow_exit=True), Config(allow_exit=False)
    assert may_exit(1, allowed)
    assert not may_exit(1, forbidden)
    assert not may_exit(DISPATCHER, allowed)


def test_the_fixed_settings_are_those_that_a_reload_refuses_to_change() -> None:
    assert [name for name, _ in fixed_settings(OLD)] == sorted(FIXED)
    assert dict(fixed_settings(Config(mode="handoff")))["mode"] == "handoff"


@pytest.mark.parametrize(
    ("mode", "own", "dispatcher"),
    [("inherit", False, False), ("reuseport", True, False), ("handoff", True, True)],
)
def test_the_policy_is_what_the_configuration_says(mode: str, own: bool, dispatcher: bool) -> None:
    config = Config(
        mode=mode,  # type: ignore[arg-type]
        rescue=False,
        graceful_timeout=1.0,
        start_timeout=2.0,
        worker_timeout=3.0,
        max_restarts=4,
        restart_window=5.0,
        shutdown_delay=6.0,
        max_greetings=7,
        max_age=8,
        max_rss=9,
    )
    policy = policy_of(config, 10)
    assert (policy.own_listeners, policy.dispatcher, policy.most_slots) == (own, dispatcher, 10)
    assert (policy.rescue, policy.graceful_timeout, policy.start_timeout) == (False, 1.0, 2.0)
    assert (policy.worker_timeout, policy.max_restarts, policy.restart_window) == (3.0, 4, 5.0)
    assert (policy.shutdown_delay, policy.max_greetings, policy.max_age) == (6.0, 7, 8)
    assert policy.max_rss_bytes == 9 * 2**20
