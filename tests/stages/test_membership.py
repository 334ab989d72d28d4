"""A worker's standing with the broker: messages and time in, events and owed messages out."""

from __future__ import annotations

import msgspec

from engine.core.introduction import Introduction, Refusal, Stranger
from engine.core.liveness import BROKER_SILENCE_S, RESEND_S
from engine.core.messages import (
    CancelItems,
    Dismiss,
    Leave,
    Message,
    Pulse,
    Ready,
    Welcome,
    WorkerBeat,
)
from stages.runtime.lately import Lately
from stages.runtime.membership import ALONE_S, FAST_TRIES, Elsewhere, Membership
from stages.runtime.shared import Dismissed, Joined, Turned, Warm

WHO = Introduction("worker", (2, 2), "d", "i", ["s"], {"/": ["s"]}, "h", 99, "", "s", 1)
WELCOME = Welcome(2, 1, 5, "ipc://lane", True, None, 0, ["s"], [("/", [0])])
AGAIN = msgspec.structs.replace(WELCOME, epoch=2, worker=1, lane="ipc://lane2")


def send_all(member: Membership, now: float) -> list[Message]:
    """Without how long answers take, of which there is a test of its own."""
    owed = member.due(now)
    for message in owed:
        member.sent(message, now)
    return [msgspec.structs.replace(one, round_trip_us=0) if isinstance(one, WorkerBeat) else one for one in owed]


def joined(now: float = 0.0) -> Membership:
    member = Membership(WHO)
    send_all(member, now)
    assert member.handle(WELCOME, now) == Joined(WELCOME)
    return member


def test_it_introduces_itself_until_welcomed_fast_at_first() -> None:
    member = Membership(WHO)
    said = []
    for tick in range(100):
        now = tick / 20
        said += [now for _ in send_all(member, now)]
        member.handle(Pulse(1, False), now)  # a broker that answers, but not with a welcome
    assert said[:FAST_TRIES] == [tick / 4 for tick in range(FAST_TRIES)]
    assert [b - a for a, b in zip(said[FAST_TRIES:], said[FAST_TRIES + 1 :], strict=False)] == [1.0, 1.0]
    assert member.worker is None


def test_an_introduction_that_did_not_leave_is_owed_still() -> None:
    member = Membership(WHO)
    assert member.due(0.0) == member.due(0.1) == [WHO]
    assert member.wake_at(0.0) == RESEND_S
    assert not member.is_silent(100.0)  # nothing was asked, nobody is to blame


def test_where_nobody_takes_an_introduction_another_connection_is_tried_and_another() -> None:
    member = Membership(WHO)
    member.opened(1.0)
    assert not member.is_silent(1.0 + BROKER_SILENCE_S)
    assert member.is_silent(1.1 + BROKER_SILENCE_S)
    assert member.reopened(5.0) is None
    assert not member.is_silent(5.0 + BROKER_SILENCE_S)
    assert member.is_silent(5.1 + BROKER_SILENCE_S)
    member.sent(WHO, 5.0 + BROKER_SILENCE_S)
    assert not member.is_silent(5.1 + BROKER_SILENCE_S)


def test_who_lost_its_connection_tries_another_one_where_that_takes_nothing_any_more() -> None:
    member = joined()
    assert member.cut(2.0) is None
    assert member.due(2.0) == [WHO]  # which does not leave: the broker is on another host by now
    assert not member.is_silent(2.0 + BROKER_SILENCE_S)
    assert member.is_silent(2.1 + BROKER_SILENCE_S)


def test_beats_come_every_second_once_joined() -> None:
    member = joined()
    assert member.worker == 5
    sent = {
        tick / 10: send_all(member, tick / 10) for tick in range(25) if not member.handle(Pulse(1, True), tick / 10)
    }
    assert {now: owed for now, owed in sent.items() if owed} == {1.0: [WorkerBeat(5)], 2.0: [WorkerBeat(5)]}


def test_ready_is_owed_once_for_each_welcome() -> None:
    member = joined()
    member.warm(Warm("m", 7), 0.1)
    assert send_all(member, 0.1) == [Ready(5, "m", 7), WorkerBeat(5)]
    assert send_all(member, 0.2) == []
    assert member.handle(WELCOME, 0.3) is None  # the same again
    assert send_all(member, 0.3) == []
    assert member.handle(AGAIN, 0.4) == Joined(AGAIN)
    assert send_all(member, 0.4) == [Ready(1, "m", 7), WorkerBeat(1)]


def test_ready_is_said_until_the_broker_knows_of_it_and_that_is_told_once() -> None:
    member = joined()
    assert member.handle(Pulse(1, True, is_loading=True), 0.1) is None
    member.warm(Warm("m", 7), 0.1)
    owed = [Ready(5, "m", 7), WorkerBeat(5)]
    assert member.due(0.2) == owed
    member.sent(owed[0], 0.2)
    assert member.due(0.2) == owed[1:]  # a socket that took one message only
    assert send_all(member, 0.3) == owed[1:]
    assert member.handle(Pulse(1, True, is_loading=True), 0.4) is None  # it was lost with a connection
    assert send_all(member, 0.4) == owed
    assert not member.is_ready(9.0)
    assert member.handle(Pulse(1, True), 9.5) is None
    assert member.is_ready(9.5)
    assert not member.is_ready(9.5)
    assert member.handle(AGAIN, 9.6) == Joined(AGAIN)
    assert send_all(member, 9.6) == [Ready(1, "m", 7), WorkerBeat(1)]
    assert member.handle(Pulse(2, True), 9.7) is None
    assert not member.is_ready(9.7)


def test_a_broker_that_begins_anew_is_told_how_long_batches_have_taken_lately() -> None:
    member = Membership(WHO)
    lately = Lately({1: 1000})
    member.warm(Warm("m", 7, times_us=lately.times_us), 0.0)
    send_all(member, 0.0)
    member.handle(WELCOME, 0.1)
    assert send_all(member, 0.1) == [Ready(5, "m", 7, times_us={1: 1000}), WorkerBeat(5)]
    lately.note(2, 3000)
    member.handle(Pulse(2, True), 1.0)
    send_all(member, 1.0)
    member.handle(AGAIN, 1.1)
    assert send_all(member, 1.1)[0] == Ready(1, "m", 7, times_us={1: 1000, 2: 3000})


def test_without_a_broker_a_worker_is_called_ready_after_a_moment() -> None:
    member = Membership(WHO)
    send_all(member, 0.0)
    assert not member.is_ready(100.0)
    member.warm(Warm("m", 7), 100.0)
    assert not member.is_ready(100.0 + ALONE_S)
    assert member.is_ready(100.1 + ALONE_S)
    assert member.handle(WELCOME, 102.0) == Joined(WELCOME)
    assert not member.is_ready(200.0)


def test_unknown_or_new_epoch_means_hello_again() -> None:
    for pulse in (Pulse(1, False), Pulse(2, True)):
        member = joined()
        assert member.handle(pulse, 1.0) is None
        assert member.worker is None
        assert send_all(member, 1.0) == [WHO]
        assert member.handle(Pulse(1, True), 1.1) is None  # late, from before
        assert member.handle(AGAIN, 1.2) == Joined(AGAIN)


def test_silence_counts_from_the_unanswered_message() -> None:
    member = joined()
    assert send_all(member, 50.0) == [WorkerBeat(5)]  # this thread was kept from running for long
    assert not member.is_silent(53.0)
    assert member.is_silent(53.1)
    member.handle(Pulse(1, True), 53.2)
    assert not member.is_silent(53.3)


def test_beats_that_cannot_be_sent_are_silence_too() -> None:
    member = joined()
    assert member.due(4.0) == [WorkerBeat(5)]
    assert not member.is_silent(4.0)
    assert member.is_silent(4.1)


def test_a_new_socket_beats_with_the_old_key_first() -> None:
    member = joined()
    send_all(member, 1.0)
    assert member.reopened(5.0) is None
    assert not member.is_silent(5.0)
    assert send_all(member, 5.0) == [WorkerBeat(5)]
    assert member.handle(Pulse(1, True), 5.1) is None
    assert member.worker == 5


def test_it_introduces_itself_on_a_new_socket_when_there_was_no_welcome() -> None:
    member = Membership(WHO)
    send_all(member, 0.0)
    assert member.is_silent(3.1)
    assert member.reopened(3.1) is None
    assert send_all(member, 3.1) == [WHO]


def test_leave_waits_for_dismissal() -> None:
    member = joined()
    assert member.leave() is None
    assert send_all(member, 0.1) == [Leave(5)]
    assert send_all(member, 1.0) == [WorkerBeat(5)]
    assert member.handle(Dismiss(), 1.1) == Dismissed()
    assert member.handle(Dismiss(), 1.2) is None


def test_leaving_worker_does_not_announce_itself() -> None:
    member = joined()
    member.leave()
    member.warm(Warm("m", 1), 0.1)
    assert send_all(member, 0.1) == [Leave(5)]


def test_leaving_without_a_broker_is_immediate() -> None:
    assert Membership(WHO).leave() == Dismissed()
    silent = joined()
    send_all(silent, 1.0)
    silent.reopened(4.1)
    assert silent.leave() == Dismissed()


def test_a_broker_that_goes_while_leaving_dismisses() -> None:
    for pulse in (Pulse(2, True), Pulse(1, False)):
        member = joined()
        member.leave()
        send_all(member, 0.1)
        assert member.handle(pulse, 0.2) == Dismissed()
        assert send_all(member, 10.0) == []
        assert member.handle(AGAIN, 10.1) is None  # a welcome that crossed our leave
    member = joined()
    member.leave()
    send_all(member, 0.1)
    assert member.is_silent(3.2)
    assert member.reopened(3.2) == Dismissed()


def test_refusal_and_other_messages() -> None:
    member = Membership(WHO)
    assert member.handle(Refusal("no"), 0.0) == Turned("no")
    assert member.handle(CancelItems([1]), 0.0) is None
    assert joined().handle(Dismiss(), 0.0) == Dismissed()  # the broker may scale a stage down


def test_a_stage_that_is_elsewhere_at_this_broker_is_looked_for_there() -> None:
    member = Membership(WHO)
    send_all(member, 0.0)
    assert member.handle(Stranger(stage=3), 0.0) == Elsewhere(3)
    assert member.reopened(0.0) is None
    assert member.due(0.0) == [WHO]


def test_a_broker_that_knows_it_no_more_is_introduced_to_again() -> None:
    member = joined()
    assert member.handle(Stranger(), 0.0) is None
    assert member.due(0.0) == [WHO]


def test_a_member_whose_words_cannot_be_read_introduces_itself() -> None:
    member = joined()
    assert member.handle(Refusal("unreadable"), 0.0) is None
    assert member.worker is None
    assert member.due(0.0) == [WHO]
    assert member.handle(Refusal("another protocol"), 0.0) == Turned("another protocol")


def test_a_broker_that_has_no_room_now_is_asked_again_and_not_at_once() -> None:
    member = Membership(WHO)
    send_all(member, 0.0)
    assert member.handle(Stranger(), 0.0) is None
    assert member.due(0.1) == []
    assert member.due(1.0) == [WHO]


def test_results_that_may_be_lost_make_it_introduce_itself_again() -> None:
    member = joined()
    assert member.cut(1.0) is None
    assert send_all(member, 1.0) == [WHO]
    assert member.cut(1.0) is None  # another of its connections: it is on its way already
    assert send_all(member, 1.0) == []
    assert member.handle(AGAIN, 1.1) == Joined(AGAIN)


def test_who_is_about_to_leave_goes_when_its_last_results_may_be_lost() -> None:
    member = joined()
    member.leave()
    send_all(member, 1.0)
    assert member.cut(1.0) == Dismissed()


def test_beats_say_how_long_the_answer_to_the_one_before_took() -> None:
    member = Membership(WHO)
    send_all(member, 0.0)
    member.handle(WELCOME, 0.25)
    said = []
    for second in range(1, 5):
        for message in member.due(second + 0.25):
            assert isinstance(message, WorkerBeat)
            said.append(message.round_trip_us)
            member.sent(message, second + 0.25)
        member.handle(Pulse(1, True), second + 0.25 + second / 100)
    assert said == [250_000, 10_000, 20_000, 30_000]


def test_a_new_socket_has_no_answer_to_what_the_former_one_asked() -> None:
    member = joined()
    send_all(member, 1.0)
    member.reopened(5.0)
    send_all(member, 5.0)
    member.handle(Pulse(1, True), 5.1)
    (beat,) = member.due(6.1)
    assert isinstance(beat, WorkerBeat)
    assert beat.round_trip_us == 100_000
