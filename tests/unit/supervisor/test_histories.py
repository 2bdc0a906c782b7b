"""Random histories: whatever happens in whatever order, the rules hold, and calm follows."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from greeterd.supervisor.events import (
    Exited,
    ExitRequested,
    Ready,
    Reload,
    Restart,
    Returned,
    Scale,
    Spawned,
    SpawnFailed,
    Stop,
    Upgrade,
)
from greeterd.supervisor.ids import Generation, SlotIndex, Ticket, WorkerId
from greeterd.supervisor.policy import Policy
from tests.unit.supervisor.fake_kernel import RSS_BYTES, Kernel

HISTORIES = 150
STEPS = 60


@dataclass
class Story:
    """One history, and what its commands have used up."""

    kernel: Kernel
    policy: Policy
    tickets: int = 0

    def ticket(self) -> Ticket:
        """Return a ticket that no command has had."""
        self.tickets += 1
        return Ticket(self.tickets)

    def anyone(self) -> WorkerId | None:
        """Return any process."""
        return self.kernel.rng.choice([*self.kernel.processes, None])


def begin(seed: int) -> Story:
    rng = random.Random(seed)
    policy = Policy(
        own_listeners=seed % 3 != 0,
        dispatcher=seed % 3 == 1,
        rescue=seed % 5 != 0,
        graceful_timeout=rng.choice([0.0, 2.0, 4.0]),
        start_timeout=rng.choice([1.0, 3.0]),
        worker_timeout=rng.choice([1.5, 5.0]),
        max_restarts=rng.choice([3, 1000, 1000, 1000]),
        restart_window=rng.choice([5.0, 60.0]),
        shutdown_delay=rng.choice([0.0, 0.0, 1.5]),
        max_greetings=rng.choice([0, 0, 10, 50]),
        max_age=rng.choice([0.0, 0.0, 3.0, 20.0]),
        max_rss_bytes=rng.choice([0, 0, RSS_BYTES // 2, RSS_BYTES + 20]),
    )
    return Story(Kernel(seed, workers=rng.choice([1, 2, 3, 4]), policy=policy), policy)


def crash(story: Story) -> None:
    if worker := story.anyone():
        story.kernel.die(worker, story.kernel.rng.choice([70, 70, 70, 0]))


def hang(story: Story) -> None:
    if worker := story.anyone():
        story.kernel.processes[worker].hung = True


def resume(story: Story) -> None:
    if worker := story.anyone():
        story.kernel.resume(worker)


def reload(story: Story) -> None:
    rng = story.kernel.rng
    story.kernel.generation += 1
    policy = replace(story.policy, graceful_timeout=rng.choice([0.0, 2.0, 4.0, 9.0]))
    live = len(story.kernel.supervisor.live_slots)
    workers = rng.choice([live, live, 1, 3, 5])
    generation = Generation(story.kernel.generation)
    story.kernel.feed(Reload(generation, workers, policy, story.ticket(), "reload"))


def reload_broken(story: Story) -> None:
    story.kernel.broken.add(Generation(story.kernel.generation + 1))
    reload(story)


def restart(story: Story) -> None:
    slot = story.kernel.rng.choice([None, SlotIndex(1), SlotIndex(2), SlotIndex(9)])
    story.kernel.feed(Restart(slot, story.ticket()))


def scale(story: Story) -> None:
    workers = story.kernel.rng.choice([0, 1, 2, 3, 5])
    story.kernel.feed(Scale(workers, ticket=story.ticket()))


def scale_by(story: Story) -> None:
    change = story.kernel.rng.choice([-1, 1, 2])
    story.kernel.feed(Scale(change=change, ticket=story.ticket()))


def upgrade(story: Story) -> None:
    story.kernel.feed(Upgrade(story.ticket()))


def ask_to_exit(story: Story) -> None:
    worker = story.anyone()
    spare = len(story.kernel.supervisor.live_slots) - 1
    if worker and story.kernel.processes[worker].serving and (spare or story.kernel.chance(0.2)):
        story.kernel.feed(ExitRequested(worker))


def leave(story: Story) -> None:
    if worker := story.anyone():
        story.kernel.leave_unasked(worker)


def repeat(story: Story) -> None:
    """Repeat an event; of a loan only where it cannot mean a new one."""
    event = story.kernel.rng.choice([*story.kernel.past, None])
    match event:
        case Spawned() | Ready() | SpawnFailed() | Exited():
            story.kernel.feed(event)
        case Returned(_, worker) | ExitRequested(worker) if worker not in story.kernel.processes:
            story.kernel.feed(event)
        case _:
            pass


def wait(story: Story) -> None:
    story.kernel.advance(story.kernel.rng.choice([0.1, 0.5, 2.0]))


WHAT_HAPPENS: list[Callable[[Story], None]] = [
    *[crash] * 4,
    *[hang] * 3,
    *[resume] * 3,
    *[reload] * 2,
    reload_broken,
    restart,
    *[scale] * 2,
    scale_by,
    upgrade,
    *[ask_to_exit] * 2,
    *[leave] * 2,
    *[repeat] * 2,
    *[wait] * 6,
]


def live(story: Story) -> None:
    kernel = story.kernel
    for _ in range(STEPS):
        if kernel.rules.final is None:
            kernel.rng.choice(WHAT_HAPPENS)(story)
            kernel.advance(kernel.rng.choice([0.0, 0.0, 0.1, 0.3]))


def calm_down(story: Story) -> None:
    """Let everything behave from now on; some that hang are left to the heartbeat."""
    kernel = story.kernel
    kernel.faults = 0.0
    for worker in list(kernel.processes):
        if kernel.rng.random() < 0.7:
            kernel.resume(worker)
    story.policy = replace(story.policy, max_greetings=0, max_age=0.0, max_rss_bytes=0)
    for _ in range(100):
        if kernel.rules.final is None and not settled(kernel):
            if recycles(kernel):
                reload(story)
            kernel.advance(2.0)


def recycles(kernel: Kernel) -> bool:
    """Tell whether workers can be due, so that there may be no end of replacements."""
    policy = kernel.supervisor.policy
    return bool(policy.max_greetings or policy.max_age or policy.max_rss_bytes)


def settled(kernel: Kernel) -> bool:
    supervisor = kernel.supervisor
    return (
        supervisor.operation is None
        and not any(slot.retiring or slot.borrower for slot in supervisor.slots.values())
        and all(slot.ready and len(slot.workers) == 1 for slot in supervisor.live_slots)
        and not any(process.hung for process in kernel.processes.values())
        and kernel.rules.answered == kernel.rules.asked
    )


def stop(story: Story) -> None:
    """End the daemon, while the workers do what they like."""
    kernel = story.kernel
    kernel.faults = 1.0
    for worker in list(kernel.processes):
        kernel.processes[worker].hung = kernel.chance(0.3)
    quick = kernel.chance(0.3)
    kernel.feed(Stop(quick=quick, ticket=story.ticket()))
    kernel.advance(kernel.rng.choice([0.0, 1.0]))
    if kernel.rules.final is None:
        quick = quick or kernel.chance(0.3)
        kernel.feed(Stop(quick=quick, ticket=story.ticket()))
    policy = kernel.supervisor.policy
    limit = 2.0 if quick else policy.shutdown_delay + policy.graceful_timeout
    kernel.advance(limit + 0.1)


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_a_history_keeps_the_rules_and_ends_in_calm(seed: int) -> None:
    story = begin(seed)
    kernel = story.kernel
    try:
        kernel.faults = 1.0 if seed % 10 == 0 else 0.0
        kernel.advance(1.0)
        kernel.faults = 1.0
        live(story)
        calm_down(story)
        assert kernel.rules.final is not None or settled(kernel), "a calm world converges"
        if kernel.rules.final is None:
            stop(story)
        assert kernel.rules.final is not None, "a stop is bounded"
        assert kernel.rules.answered == kernel.rules.asked, "every command is answered once"
    except AssertionError:
        print("\n".join(kernel.rules.tail))
        raise
