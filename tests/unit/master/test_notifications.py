"""What the service manager is told, and when."""

from greeterd.master.systemd.notifications import Message, Notifications, View

WATCHDOG = 10.0


class World:
    """A daemon that is as the test says, and the clock."""

    def __init__(self, *, watchdog: float | None = None, upgraded: Message = ()) -> None:
        self.notices = Notifications(watchdog=watchdog, upgraded=upgraded)
        self.now = 100.0
        self.figures = "figures"

    def look(
        self,
        *,
        after: float = 0.0,
        started: bool = True,
        stopping: bool = False,
        ready: int = 4,
        healthy: int = 4,
    ) -> list[Message]:
        """Return what is told to the manager of a daemon that is like this, so much later."""
        self.now += after
        view = View(started=started, stopping=stopping, slots=4, ready=ready, healthy=healthy)
        return self.notices.look(view, lambda: self.figures, self.now)

    def words(self, **view: object) -> list[str]:
        """Return what is told, without its figures."""
        return [message[0].partition("=")[0] for message in self.look(**view)]  # type: ignore[arg-type]


def ready(*, watchdog: float | None = None) -> World:
    """Return a daemon that was ready, and 3 seconds later."""
    world = World(watchdog=watchdog)
    world.look()
    world.now += 3.0
    return world


def test_ready_is_told_once_when_every_worker_accepts() -> None:
    world = World()
    assert "READY" not in world.words(started=False, ready=3)
    assert "READY" not in world.words(started=False)
    assert ("READY=1",) in world.look()
    assert "READY" not in world.words(ready=3)
    assert "READY" not in world.words()


def test_a_reload_begins_with_its_instant_and_ends_when_every_worker_accepts_again() -> None:
    world = ready()
    assert world.notices.begin(123) == [("RELOADING=1", "MONOTONIC_USEC=123")]
    assert "READY" not in world.words()
    world.notices.end("")
    assert "READY" not in world.words(ready=3)
    assert "READY" in world.words()


def test_a_reload_that_is_refused_at_once_begins_and_ends_all_the_same() -> None:
    world = ready()
    assert world.notices.begin(123)
    world.notices.end("reload failed: no such file")
    assert world.look()[:2] == [
        ("READY=1",),
        ("STATUS=ready: figures; reload failed: no such file",),
    ]
    world.notices.begin(124)
    world.notices.end("")
    assert ("STATUS=ready: figures",) in world.look()


def test_reloads_that_overlap_end_together_and_each_tells_its_beginning() -> None:
    world = ready()
    assert world.notices.begin(1)
    assert world.notices.begin(2) == [("RELOADING=1", "MONOTONIC_USEC=2")]
    world.notices.end("")
    assert "READY" not in world.words()
    world.notices.end("")
    assert "READY" in world.words()


def test_a_reload_before_the_daemon_is_ready_is_no_reloading() -> None:
    world = World()
    assert world.notices.begin(1) == []
    assert "READY" in world.words()


def test_an_image_that_was_upgraded_is_reloading_until_it_serves() -> None:
    world = World(upgraded=("MAINPID=7",))
    world.notices.begin(1)
    assert "READY" not in world.words()
    world.notices.end("")
    assert ("READY=1", "MAINPID=7") in world.look()
    world.notices.begin(2)
    world.notices.end("")
    assert ("READY=1",) in world.look(), "the pid is told once"


def test_after_stopping_nothing_is_told_to_be_ready_or_to_reload() -> None:
    world = ready()
    assert world.look(stopping=True)[:2] == [("STOPPING=1",), ("STATUS=stopping: figures",)]
    assert world.notices.begin(1) == []
    world.notices.end("")
    assert not {"READY", "STOPPING"} & {*world.words(stopping=True, after=60.0)}


def test_a_daemon_that_stops_while_it_starts_was_never_ready() -> None:
    world = World()
    world.look(started=False)
    assert world.look(started=False, stopping=True)[0] == ("STOPPING=1",)


def test_figures_are_told_every_few_seconds_and_only_when_they_have_changed() -> None:
    world = ready()
    world.figures = "others"
    assert world.look(after=1.0) == []
    assert world.look(after=1.0) == [("STATUS=ready: others",)]
    assert world.look(after=6.0) == []
    assert world.notices.next_deadline() == world.now + 5.0


def test_a_new_phase_is_told_at_once() -> None:
    world = ready()
    world.notices.begin(1)
    assert ("STATUS=reloading: figures",) in world.look()


def test_the_watchdog_is_fed_at_half_its_period() -> None:
    world = World(watchdog=WATCHDOG)
    assert "WATCHDOG" in world.words()
    assert world.notices.next_deadline() <= world.now + WATCHDOG / 2
    assert "WATCHDOG" not in world.words(after=4.9)
    assert "WATCHDOG" in world.words(after=0.1)


def test_without_a_watchdog_it_is_not_fed() -> None:
    assert "WATCHDOG" not in ready().words(after=60.0)


def test_the_watchdog_starves_while_half_of_the_workers_are_not_well() -> None:
    world = ready(watchdog=WATCHDOG)
    assert "WATCHDOG" not in world.words(after=10.0, healthy=2)
    assert world.now < world.notices.next_deadline() <= world.now + 1.0, "and the loop sleeps"
    assert "WATCHDOG" in world.words(after=1.0, healthy=3)


def test_the_watchdog_is_fed_while_the_daemon_starts_and_stops() -> None:
    world = World(watchdog=WATCHDOG)
    assert "WATCHDOG" in world.words(started=False, ready=0, healthy=0)
    assert "WATCHDOG" in world.words(after=5.0, stopping=True, ready=0, healthy=0)


def test_more_time_is_asked_for_while_something_lasts() -> None:
    extension = ("EXTEND_TIMEOUT_USEC=15000000",)
    world = World()
    assert extension in world.look(started=False)
    assert extension in world.look(started=False, after=5.0)
    assert world.notices.next_deadline() == world.now + 5.0
    assert extension not in world.look(), "ready"
    assert extension not in world.look(after=60.0)
    world.notices.begin(1)
    assert extension in world.look()
    world.notices.end("")
    assert extension not in world.look(after=60.0)
    assert extension in world.look(stopping=True), "the manager has begun to count"


def test_no_time_is_asked_for_when_a_reload_has_ended_and_a_worker_is_missing() -> None:
    world = ready()
    world.notices.begin(1)
    world.look()
    world.notices.end("")
    assert "EXTEND_TIMEOUT_USEC" not in world.words(after=60.0, ready=3)


def test_notifications_are_due_at_once_also_on_a_machine_that_has_just_booted() -> None:
    world = World(watchdog=WATCHDOG)
    world.now = 0.0
    everything = ["STATUS", "EXTEND_TIMEOUT_USEC", "WATCHDOG"]
    assert world.words(started=False, ready=0) == everything
    assert world.words(after=0.1) == ["READY", "STATUS"]
    world.notices.begin(1)
    assert world.words(after=0.1) == ["STATUS", "EXTEND_TIMEOUT_USEC"]
    assert world.words(after=0.1, stopping=True) == ["STOPPING", "STATUS", "EXTEND_TIMEOUT_USEC"]


def test_notifications_of_a_failed_reload_do_not_wait_for_another_that_goes_on() -> None:
    world = ready()
    world.notices.begin(1)
    world.notices.begin(2)
    world.look()
    world.notices.end("why")
    assert world.look(after=1.0) == [("STATUS=reloading: figures; why",)]
    assert world.notices.next_deadline() == world.now + 4.0, "then more time is asked for again"
    assert world.words(after=4.0) == ["EXTEND_TIMEOUT_USEC"]
