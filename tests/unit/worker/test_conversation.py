"""What a worker may say, and how often: all else is a breach."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greeterd.supervisor.ids import DrainMode
from greeterd.worker.conversation import MAX_EXITS, STRANGERS_CREDIT, Conversation
from greeterd.worker.messages import (
    ClosedMessage,
    DrainMessage,
    ExitMessage,
    FailedMessage,
    FromMaster,
    GoMessage,
    LeavingMessage,
    LendMessage,
    Message,
    ReadyMessage,
    RefusedMessage,
    ReopenedMessage,
    ReopenMessage,
    ReturnedMessage,
    RoutedMessage,
    RouteMessage,
    TakeBackMessage,
    tag_of,
)
from tests.unit.worker.test_messages import MESSAGES

READY, FAILED, EXIT, LEAVING = (
    ReadyMessage(),
    FailedMessage(70, "no"),
    ExitMessage(),
    LeavingMessage(),
)
ANSWERS: list[tuple[FromMaster, Message]] = [
    (DrainMessage(DrainMode.HAND_OVER.value), ClosedMessage()),
    (ReopenMessage(), ReopenedMessage("")),
    (TakeBackMessage(3), ReturnedMessage(3)),
    (LendMessage(3), RefusedMessage(3, "no room")),
    (RouteMessage(3), RoutedMessage(3)),
]


def ready(*, may_exit: bool = False) -> Conversation:
    """Return that of a worker that is ready."""
    conversation = Conversation(may_exit=may_exit)
    assert conversation.heard(READY, 0) == ""
    return conversation


def test_a_worker_is_ready_once() -> None:
    assert ready().heard(READY, 0) == "'ready' is not due"
    assert ready().heard(FAILED, 0) == "'failed' is not due"


def test_a_worker_that_has_failed_says_nothing_more() -> None:
    conversation = Conversation()
    assert conversation.heard(FAILED, 0) == ""
    assert all(conversation.heard(message, 0) for message in MESSAGES)


def test_a_worker_that_is_not_ready_says_nothing_else() -> None:
    others = [message for message in MESSAGES if tag_of(message) not in {"ready", "failed"}]
    conversation = Conversation(may_exit=True)
    assert all(conversation.heard(message, 0) for message in others)


def test_a_worker_leaves_of_its_own_once() -> None:
    conversation = ready()
    assert conversation.heard(LEAVING, 0) == ""
    assert conversation.heard(LEAVING, 0) == "'leaving' is not due"


def test_exit_is_due_only_where_it_is_allowed_and_not_for_ever() -> None:
    assert ready().heard(EXIT, 0) == "'exit' is not due"
    conversation = ready(may_exit=True)
    assert [conversation.heard(EXIT, 0) for _ in range(MAX_EXITS)] == [""] * MAX_EXITS
    assert conversation.heard(EXIT, 0) == "'exit' is not due"


@pytest.mark.parametrize(("question", "answer"), ANSWERS, ids=tag_of)
def test_there_are_as_many_answers_as_questions(question: FromMaster, answer: Message) -> None:
    conversation = ready()
    assert conversation.heard(answer, 0)
    for _ in range(2):
        conversation.told(question)
    assert [conversation.heard(answer, 0) for _ in range(2)] == ["", ""]
    assert conversation.heard(answer, 0).endswith("is not due")


def test_an_answer_is_of_the_slot_that_was_asked_for() -> None:
    conversation = ready()
    conversation.told(TakeBackMessage(3))
    assert conversation.heard(ReturnedMessage(4), 0) == "'returned 4' is not due"


@pytest.mark.parametrize("how", [DrainMode.SWEEP, DrainMode.QUICK])
def test_who_is_told_to_leave_otherwise_has_nothing_to_answer(how: DrainMode) -> None:
    conversation = ready()
    conversation.told(DrainMessage(how.value))
    conversation.told(GoMessage())
    assert conversation.heard(ClosedMessage(), 0)


def test_a_worker_does_not_say_what_is_for_the_master_to_say() -> None:
    assert ready().heard(LendMessage(1), 0) == "'lend' is for the master to say"


def test_only_ready_has_descriptors_one_a_listener() -> None:
    conversation = Conversation(listeners=2)
    assert conversation.descriptors_due == 2
    assert conversation.heard(READY, 1) == "'ready' with 1 descriptors"
    assert conversation.heard(FAILED, 2) == "'failed' with 2 descriptors"
    assert conversation.heard(READY, 2) == ""
    assert conversation.descriptors_due == 0
    assert conversation.heard(LEAVING, 2) == "'leaving' with 2 descriptors"


def test_the_next_image_goes_on_with_what_is_still_due() -> None:
    conversation = ready()
    conversation.told(TakeBackMessage(3))
    heir = Conversation.go_on(conversation.credit, may_exit=False, slots=[1, 3])
    assert heir.credit == {"leaving": 1, "returned 3": 1}
    assert heir.answers_routes
    assert heir.heard(ReturnedMessage(3), 0) == ""
    assert heir.heard(READY, 0) == "'ready' is not due"


def test_of_a_worker_whose_books_were_not_kept_answers_are_taken_and_counted_too() -> None:
    heir = Conversation.go_on(None, may_exit=False, slots=[1, 3])
    assert not heir.answers_routes
    for answer in (ClosedMessage(), ReopenedMessage(""), ReturnedMessage(3), LEAVING):
        assert [heir.heard(answer, 0) for _ in range(STRANGERS_CREDIT)] == [""] * STRANGERS_CREDIT
        assert heir.heard(answer, 0)
    assert heir.heard(READY, 0)
    assert heir.heard(EXIT, 0)


@given(st.lists(st.tuples(st.sampled_from(MESSAGES), st.integers(0, 3))), st.integers(0, 2))
def test_whatever_a_worker_says_unasked_little_of_it_is_heard(
    said: list[tuple[Message, int]], listeners: int
) -> None:
    conversation = Conversation(listeners=listeners)
    heard = [message for message, count in said if not conversation.heard(message, count)]
    assert len(heard) <= 2
