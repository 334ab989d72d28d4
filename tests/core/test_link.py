"""A frontend's standing with its broker: what is sent when, what is sent again, and whose word counts for whom."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.core import wording
from engine.core.call import Answer, Call, StreamEvent
from engine.core.introduction import Introduction, Refusal, Stranger
from engine.core.link import (
    FORGET_S,
    FULL_S,
    PARCEL_ITEMS,
    PARCEL_TURNS,
    PATIENCE_MOST_S,
    SLOW_BYTES_S,
    TORN,
    UNKNOWN_FATE,
    Link,
    LinkState,
    Submission,
)
from engine.core.liveness import INTRODUCE_FAST_S, INTRODUCE_SLOW_S, LIMIT_S, LOST_S, MOVE_S
from engine.core.messages import (
    Answers,
    Cancel,
    Consumed,
    Events,
    Flow,
    FrontendPulse,
    FrontendWelcome,
    Ready,
    Speaker,
    StageState,
    Submit,
)
from engine.core.routing import Route, Topology
from engine.core.wire import HALF_HEADER, decode, encode
from engine.errors import Unavailable
from tests.core.twin import frontend_words

TABLE = Topology(("a", "b"), (Route("/one", (0,)), Route("/two", (0, 1))))
NOW = 1000.0


class Waiter:
    def __init__(self) -> None:
        self.answers: list[Answer | None] = []
        self.events: list[StreamEvent] = []

    def answered(self, answer: Answer | None) -> None:
        self.answers.append(answer)

    def event(self, event: StreamEvent) -> None:
        self.events.append(event)

    @property
    def answer(self) -> Answer:
        (only,) = self.answers
        assert only is not None
        return only


def welcome(session: int = 1, table: Topology = TABLE) -> FrontendWelcome:
    return FrontendWelcome(2, 7, session, list(table.stages), [(one.path, list(one.stages)) for one in table.routes])


def pulse(*, draining: bool = False, headroom: int = 9) -> FrontendPulse:
    return FrontendPulse(draining, headroom, [StageState("a", 1, 1, 0, 0, 0), StageState("b", 1, 1, 0, 0, 0)])


class Desk:
    """A link, and what it has sent."""

    def __init__(self, *, once_only: Sequence[bool] = (), joined: bool = True) -> None:
        self.now = NOW
        self.link = Link(frontend_words(TABLE), TABLE, once_only=once_only, now=NOW)
        if joined:
            assert [type(owed) for owed in self.send()] == [Introduction]
            self.hear(welcome(), pulse())

    def hear(self, *words: object) -> None:
        for one in words:
            assert self.link.handle(one, [b"x"] * len(getattr(one, "seqs", [])), self.now)  # type: ignore[arg-type]

    def send(self) -> list[object]:
        sent: list[object] = []
        while (owed := self.link.owed(self.now)) is not None:
            self.link.left(owed, self.now)
            sent.append(owed)
        return sent

    def submit(self, route: int = 0, *, left_s: float = 5.0) -> tuple[int, Waiter]:
        waiter = Waiter()
        return self.link.submit(Call(route, b"body", self.now + left_s, b"", waiter), self.now), waiter

    def submitted(self) -> list[tuple[int, int]]:
        """Number and the broker's route of what leaves now."""
        return [
            (call.seq, route)
            for owed in self.send()
            if isinstance(owed, Submission)
            for call, route in zip(owed.calls, owed.routes, strict=True)
        ]


def answers(seq: int, status: int = 200, speaker: Speaker = Speaker.WORKER) -> Answers:
    return Answers([seq], [status], ["text/plain"], [b""], speakers={0: int(speaker)} if speaker else {})


# --- joining ---------------------------------------------------------------------------------------------------------


def test_nothing_leaves_before_the_welcome_and_the_introduction_is_repeated() -> None:
    desk = Desk(joined=False)
    seq, waiter = desk.submit()
    assert [type(owed) for owed in desk.send()] == [Introduction]
    assert desk.send() == []
    desk.now += INTRODUCE_FAST_S
    assert [type(owed) for owed in desk.send()] == [Introduction]
    desk.hear(welcome())
    assert desk.submitted() == [(seq, 0)]
    desk.hear(answers(seq))
    assert waiter.answer.status == 200


def test_routes_travel_by_the_brokers_numbers() -> None:
    desk = Desk(joined=False)
    desk.send()
    desk.hear(welcome(table=Topology(("b", "a"), (Route("/two", (1, 0)), Route("/one", (1,))))))
    one, two = desk.submit(0)[0], desk.submit(1)[0]
    assert desk.submitted() == [(one, 1), (two, 0)]


def test_a_route_that_the_broker_leads_otherwise_is_refused_and_the_others_are_served() -> None:
    desk = Desk(joined=False)
    desk.send()
    _, early = desk.submit(1)
    desk.hear(welcome(table=Topology(("a", "b"), (Route("/two", (1, 0)), Route("/one", (0,))))), pulse())
    assert (early.answer.status, early.answer.body) == (503, wording.OTHER_ROUTE.encode())
    assert desk.link.missing == ("/two",)
    with pytest.raises(Unavailable, match="does not serve"):
        desk.submit(1)
    seq, _ = desk.submit(0)
    assert desk.submitted() == [(seq, 1)]


def test_a_refusal_is_kept_in_words_and_asked_again_later() -> None:
    desk = Desk(joined=False)
    desk.send()
    desk.hear(Refusal("another deployment"))
    assert (desk.link.state, desk.link.refusal) == (LinkState.REFUSED, "another deployment")
    with pytest.raises(Unavailable) as refused:
        desk.submit()
    assert refused.value.status == 503
    assert "another deployment" not in str(refused.value)  # that is for the log
    assert not desk.link.view(desk.now).connected
    assert desk.send() == []
    desk.now += INTRODUCE_SLOW_S
    assert [type(owed) for owed in desk.send()] == [Introduction]
    desk.hear(welcome(), pulse())
    assert desk.link.view(desk.now).connected
    desk.submit()


def test_a_welcome_that_makes_no_sense_is_no_welcome() -> None:
    desk = Desk(joined=False)
    nonsense = FrontendWelcome(2, 7, 1, ["a"], [("/one", [5])])
    assert not desk.link.handle(nonsense, [], NOW)
    assert not desk.link.handle(Ready(1, "m"), [], NOW)
    assert desk.link.state is LinkState.SEEKING


# --- a broker that knows nothing of it -------------------------------------------------------------------------------


def test_everything_unanswered_is_submitted_again_to_a_new_session() -> None:
    desk = Desk()
    first, second, third = desk.submit(), desk.submit(1), desk.submit()
    assert len(desk.submitted()) == 3
    desk.hear(answers(first[0]))
    desk.hear(Stranger())
    fourth = desk.submit()
    assert [type(owed) for owed in desk.send()] == [Introduction]
    desk.hear(welcome(session=2))
    assert sorted(desk.submitted()) == [(second[0], 1), (third[0], 0), (fourth[0], 0)]
    desk.hear(answers(third[0]), answers(third[0]), answers(second[0]), answers(fourth[0]))
    assert all(len(waiter.answers) == 1 for _, waiter in (first, second, third, fourth))


def test_a_welcome_said_twice_changes_nothing() -> None:
    desk = Desk(once_only=[True, False])
    _, waiter = desk.submit()
    assert len(desk.submitted()) == 1
    desk.hear(welcome())
    assert desk.submitted() == []
    assert waiter.answers == []


def test_a_once_only_request_of_unknown_fate_ends_as_a_failure_that_says_so() -> None:
    desk = Desk(once_only=[False, True])
    _, once = desk.submit(1)
    again = desk.submit(0)
    assert len(desk.submitted()) == 2
    desk.hear(Stranger())
    desk.send()
    _, late = desk.submit(1)  # not sent yet: its fate is known
    desk.hear(welcome(session=2))
    assert (once.answer.status, once.answer.body) == (500, UNKNOWN_FATE)
    assert once.answer.speaker != Speaker.WORKER
    assert [route for _, route in desk.submitted()] == [1, 0]
    assert late.answers == again[1].answers == []


def test_a_once_only_request_that_the_broker_left_alone_is_submitted_again() -> None:
    desk = Desk(once_only=[True, True])
    seq, waiter = desk.submit()
    assert desk.submitted() == [(seq, 0)]
    desk.hear(Stranger(untaken=[seq, 99]))
    desk.send()
    desk.hear(welcome(session=2))
    assert desk.submitted() == [(seq, 0)]
    desk.hear(answers(seq))
    assert waiter.answer.status == 200


def test_a_stream_that_has_begun_is_torn() -> None:
    desk = Desk()
    seq, waiter = desk.submit()
    desk.send()
    desk.hear(Events([seq], flow=int(Flow.EVENTS), mime="text/event-stream"))
    assert waiter.events == [StreamEvent(b"x", Flow.EVENTS, "text/event-stream")]
    desk.hear(Stranger())
    desk.send()
    desk.hear(welcome(session=2))
    assert (waiter.answer.status, waiter.answer.body) == (500, TORN)
    assert desk.submitted() == []
    desk.hear(Events([seq]))
    assert len(waiter.events) == 1


def test_what_was_owed_to_the_former_session_is_forgotten() -> None:
    desk = Desk()
    (gone, _), (stays, _) = desk.submit(), desk.submit()
    desk.send()
    assert desk.link.withdraw(gone)
    desk.link.consumed(stays, 5)
    desk.hear(Stranger())
    desk.send()
    desk.hear(welcome(session=2))
    assert [type(owed) for owed in desk.send()] == [Submission]


# --- sending ---------------------------------------------------------------------------------------------------------


def test_what_was_withdrawn_before_it_was_sent_never_is_and_needs_no_cancelling() -> None:
    desk = Desk()
    (gone, waiter), (stays, _) = desk.submit(), desk.submit()
    assert desk.link.withdraw(gone)
    assert not desk.link.withdraw(gone)
    assert desk.submitted() == [(stays, 0)]
    assert desk.send() == []
    desk.hear(answers(gone))
    assert waiter.answers == []


def test_what_was_withdrawn_later_is_cancelled() -> None:
    desk = Desk()
    seq, waiter = desk.submit()
    desk.send()
    desk.link.withdraw(seq)
    (cancel,) = desk.send()
    assert cancel == Cancel([seq])
    desk.hear(answers(seq))
    assert waiter.answers == []


def test_what_did_not_leave_is_owed_again() -> None:
    desk = Desk()
    seq, _ = desk.submit()
    first = desk.link.owed(NOW)
    assert isinstance(first, Submission)
    assert not first.calls[0].was_sent
    more, _ = desk.submit()
    assert desk.submitted() == [(seq, 0), (more, 0)]
    assert first.calls[0].was_sent


def test_consumed_bytes_are_added_up_while_the_stream_is_owed() -> None:
    desk = Desk()
    seq, _ = desk.submit()
    desk.send()
    desk.link.consumed(seq, 3)
    desk.link.consumed(seq, 4)
    assert desk.send() == [Consumed({seq: 7})]
    desk.hear(answers(seq))
    desk.link.consumed(seq, 5)
    assert desk.send() == []


def test_many_requests_leave_in_several_parcels() -> None:
    desk = Desk(joined=False)
    desk.send()
    seqs = [desk.submit()[0] for _ in range(3 * PARCEL_ITEMS + 1)]
    desk.hear(welcome())
    parcels = [owed for owed in desk.send() if isinstance(owed, Submission)]
    assert [len(one.calls) for one in parcels] == [PARCEL_ITEMS] * 3 + [1]
    assert [call.seq for one in parcels for call in one.calls] == seqs


def test_requests_with_large_heads_leave_in_parcels_that_can_be_read() -> None:
    """A client may send a head of a megabyte where the file allows that; a parcel's header has sixteen."""
    desk = Desk(joined=False)
    desk.send()
    heads = [b"x" * (1 << 20)] * PARCEL_ITEMS + [b"x" * (HALF_HEADER + 1)] + [b""] * 3
    for head in heads:
        desk.link.submit(Call(0, b"body", NOW + 5, head, Waiter()), NOW)
    desk.hear(welcome())
    parcels = [owed for owed in desk.send() if isinstance(owed, Submission)]
    assert [call.meta for one in parcels for call in one.calls] == heads
    assert [len(one.calls) for one in parcels] == [8, 8, 8, 8, 1, 3]
    for one in parcels:
        n = len(one.calls)
        submit = Submit(list(range(n)), one.routes, [1] * n, [call.meta for call in one.calls])
        decode(encode(submit, [call.body for call in one.calls]))


def test_what_is_withdrawn_before_it_is_sent_holds_no_body() -> None:
    desk = Desk(joined=False)
    call = Call(0, b"large", NOW + 5, b"meta", Waiter())
    assert desk.link.withdraw(desk.link.submit(call, NOW))
    assert call.body == call.meta == b""


def test_a_lone_request_never_waits_and_a_growing_crowd_does_for_a_while() -> None:
    desk = Desk()
    desk.submit()
    assert not desk.link.gathers()
    turns = 0
    while desk.submit() and desk.link.gathers():
        turns += 1
    assert turns == PARCEL_TURNS
    desk.send()
    for _ in range(2):
        desk.submit()
    assert desk.link.gathers()
    assert not desk.link.gathers()  # nobody came in this turn


def test_one_request_waits_for_one_turn_where_others_are_under_way() -> None:
    """Each has a connection of its own, and no turn brings two: sent one by one they stay one by one for ever."""
    desk = Desk()
    first, _ = desk.submit()
    assert not desk.link.gathers()
    desk.send()
    desk.submit()
    assert desk.link.gathers()
    desk.submit()
    assert desk.link.gathers()
    assert not desk.link.gathers()
    assert [len(one.calls) for one in desk.send() if isinstance(one, Submission)] == [2]
    second, _ = desk.submit()
    assert desk.link.gathers()
    assert not desk.link.gathers()  # nobody came in that turn
    desk.send()
    for seq in desk.link.waiting.copy():
        assert desk.link.withdraw(seq)
    assert first != second
    desk.submit()
    assert not desk.link.gathers()  # it is alone again


def test_a_full_parcel_leaves_at_once_but_for_whom_it_would_leave_to_nobody() -> None:
    desk = Desk()
    for _ in range(PARCEL_ITEMS):
        assert not desk.link.is_parcel_full
        desk.submit()
    assert desk.link.is_parcel_full
    desk.hear(Stranger())
    assert not desk.link.is_parcel_full


# --- whose word counts for whom --------------------------------------------------------------------------------------


def test_a_full_door_shuts_for_a_moment_for_everybody() -> None:
    desk = Desk()
    seq, waiter = desk.submit()
    desk.send()
    desk.hear(answers(seq, 429, Speaker.DOOR))
    assert waiter.answer.speaker == Speaker.DOOR
    for route in (0, 1):
        with pytest.raises(Unavailable) as refused:
            desk.submit(route)
        assert refused.value.status == 429
    assert desk.link.view(desk.now).headroom == 0
    desk.now += FULL_S
    desk.submit()
    assert desk.link.view(desk.now).headroom == 9


def test_a_full_stage_shuts_its_route_alone() -> None:
    desk = Desk()
    seq, _ = desk.submit(1)
    desk.send()
    desk.hear(answers(seq, 429, Speaker.STAGE))
    with pytest.raises(Unavailable):
        desk.submit(1)
    desk.submit(0)
    assert desk.link.view(desk.now).headroom > 0
    desk.now += FULL_S
    desk.submit(1)


@pytest.mark.parametrize("status", [429, 503])
def test_what_a_worker_says_is_for_its_own_client(status: int) -> None:
    desk = Desk()
    seq, waiter = desk.submit()
    desk.send()
    desk.hear(answers(seq, status))
    assert waiter.answer.status == status
    desk.submit()
    assert desk.link.view(desk.now).headroom > 0


def test_a_draining_broker_gets_nothing_new() -> None:
    desk = Desk()
    desk.hear(pulse(draining=True))
    with pytest.raises(Unavailable) as refused:
        desk.submit()
    assert refused.value.status == 503


def test_a_broker_that_is_not_heard_is_lost_after_a_while() -> None:
    desk = Desk()
    desk.now += LOST_S
    desk.submit()
    desk.now += 0.001
    with pytest.raises(Unavailable):
        desk.submit(left_s=LOST_S)
    desk.submit(left_s=LOST_S + 0.1)  # it can wait for longer than the silence has lasted
    assert not desk.link.view(desk.now).connected
    desk.hear(pulse())
    desk.submit()


def test_before_the_first_word_it_is_not_connected_and_shut_to_nobody() -> None:
    desk = Desk(joined=False)
    view = desk.link.view(NOW)
    assert (view.connected, view.draining, view.stages) == (False, False, ())
    assert view.headroom > 0


def test_who_is_refused_has_nothing_to_wait_for() -> None:
    desk = Desk()
    (sent, on_its_way), (_, waiting) = desk.submit(), desk.submit(1)
    first = desk.link.owed(NOW)
    assert isinstance(first, Submission)
    first.calls[0].is_sent = True
    desk.hear(Refusal("no"))
    assert waiting.answer.status == 503
    assert on_its_way.answers == []
    assert list(desk.link.waiting) == [sent]


def test_what_one_waiter_raises_costs_the_others_nothing() -> None:
    class Broken(Waiter):
        def answered(self, answer: Answer | None) -> None:
            raise RuntimeError("no")

        event = answered  # type: ignore[assignment]

    desk = Desk()
    broken = desk.link.submit(Call(0, b"", NOW + 5, b"", Broken()), NOW)
    seq, waiter = desk.submit()
    desk.send()
    both = [broken, seq]
    desk.hear(Events(both, flow=int(Flow.EVENTS), mime="m"))
    desk.hear(Answers(both, [200] * 2, [""] * 2, [b""] * 2))
    assert waiter.answer.status == 200
    assert len(waiter.events) == 1
    assert [str(error) for error in desk.link.troubles] == ["no", "no"]


def test_who_submits_while_others_are_told_of_a_new_session_is_not_taken_for_them() -> None:
    desk = Desk(once_only=[True, True])

    class Again(Waiter):
        def answered(self, answer: Answer | None) -> None:
            super().answered(answer)
            desk.submitted()  # a full parcel leaves at once, from within

    again = Again()
    desk.link.submit(Call(0, b"", NOW + 5, b"", again), NOW)
    desk.send()
    desk.hear(Stranger())
    desk.send()
    later = [desk.submit()[1] for _ in range(5)]
    desk.hear(welcome(session=2))
    assert again.answer.status == 500
    assert [waiter.answers for waiter in later] == [[]] * 5
    assert len(desk.link.waiting) == 5


def test_closing_tells_everybody_once() -> None:
    desk = Desk()
    waiters = [desk.submit()[1] for _ in range(3)]
    desk.link.close()
    assert [waiter.answers for waiter in waiters] == [[None]] * 3
    assert desk.send() == []


def test_a_waiter_may_submit_from_its_answer() -> None:
    desk = Desk(once_only=[True, False])

    class Again(Waiter):
        def answered(self, answer: Answer | None) -> None:
            super().answered(answer)
            desk.submit(1)

    again = Again()
    desk.link.submit(Call(0, b"", NOW + 5, b"", again), NOW)
    desk.send()
    desk.hear(Stranger())
    desk.send()
    desk.hear(welcome(session=2))  # answers it: its fate is unknown
    assert again.answer.status == 500
    assert [route for _, route in desk.submitted()] == [1]


def refusal(seq: int, speaker: Speaker, retry_ms: int) -> Answers:
    return Answers([seq], [429], [""], [b""], speakers={0: int(speaker)}, retries_ms={0: retry_ms})


def test_a_forecast_holds_for_nobody_else() -> None:
    desk = Desk()
    seq, waiter = desk.submit()
    desk.send()
    desk.hear(refusal(seq, Speaker.FORECAST, 70))
    assert (waiter.answer.status, waiter.answer.retry_ms) == (429, 70)
    desk.submit()
    assert desk.link.view(desk.now).headroom > 0


def test_whoever_is_refused_for_what_others_were_told_is_told_the_same() -> None:
    desk = Desk()
    assert desk.link.view(desk.now).retry_s == 1.0
    seq, waiter = desk.submit()
    desk.send()
    desk.hear(refusal(seq, Speaker.DOOR, 1700))
    assert waiter.answer.retry_ms == 1700
    with pytest.raises(Unavailable) as refused:
        desk.submit()
    assert (refused.value.status, refused.value.retry_after_s) == (429, 1.7)
    assert desk.link.view(desk.now).retry_s == 1.7


# --- one of several --------------------------------------------------------------------------------------------------


def test_a_broker_is_ready_while_every_stage_is_and_it_is_heard() -> None:
    desk = Desk(joined=False)
    assert desk.link.ready(NOW) == 0
    desk.send()
    desk.hear(welcome())
    assert desk.link.ready(NOW) == 0, "nothing is known of its stages"
    desk.hear(pulse())
    assert desk.link.ready(NOW) == 2
    assert desk.link.ready(NOW + MOVE_S) == 2
    assert desk.link.ready(NOW + MOVE_S + 0.01) == 0
    desk.hear(FrontendPulse(False, 9, [StageState("a", 1, 3, 0, 0, 0), StageState("b", 1, 0, 1, 0, 0)]))
    assert desk.link.ready(NOW) == 0
    desk.hear(pulse(draining=True))
    assert desk.link.ready(NOW) == 0
    desk.hear(pulse())
    desk.submit()
    desk.send()
    desk.hear(answers(1, 429, Speaker.DOOR))
    assert desk.link.ready(NOW) == 0
    assert desk.link.ready(NOW + FULL_S) == 2


def test_what_is_silent_is_said_of_no_one_too_early() -> None:
    desk = Desk()
    assert not desk.link.is_silent(NOW + MOVE_S)
    assert desk.link.is_silent(NOW + MOVE_S + 0.01)


def test_what_another_broker_can_do_as_well_may_move() -> None:
    desk = Desk(once_only=(False, True))
    plain, _ = desk.submit(0)
    once, _ = desk.submit(1)
    begun, _ = desk.submit(0)
    waiter = Waiter()
    keyed = desk.link.submit(Call(0, b"body", NOW + 5, b"", waiter, b"k" * 32), NOW)
    desk.send()
    desk.hear(Events([begun], Flow.EVENTS, "text/event-stream"))
    unsent, _ = desk.submit(1)
    assert [seq for seq, _ in desk.link.movable()] == [plain, unsent], "what has not left was computed by nobody"
    assert [seq for seq, _ in desk.link.movable(unsent=True)] == [unsent]
    call = desk.link.waiting[unsent]
    desk.link.moved([(plain, True), (unsent, False)])
    call.seq = once  # of another broker's link
    assert set(desk.link.waiting) == {once, begun, keyed}
    assert desk.send() == [Cancel([plain])], "should it be heard again, nobody waits for it"
    desk.hear(answers(plain))
    assert desk.send() == [], "it was another's already"


def test_numbers_of_other_links_mean_nothing_here() -> None:
    """A call that moved before it was sent has the number of another, which may be one that waits here."""
    desk = Desk(joined=False)
    first, _ = desk.submit()
    second, waiter = desk.submit()
    call = desk.link.waiting[first]
    desk.link.moved([(first, False)])
    call.seq = second
    desk.send()
    desk.hear(welcome(), pulse())
    assert desk.submitted() == [(second, 0)]
    back = desk.link.submit(call, NOW)
    assert desk.submitted() == [(back, 0)], "once, where it has come back"
    desk.hear(answers(second))
    assert waiter.answer.status == 200


class Peers:
    def __init__(self, *, take: bool) -> None:
        self.take, self.asked, self.killers = take, 0, 0

    def takes(self, seq: int, call: Call) -> bool:
        self.asked += 1
        return self.take

    def poisoned(self, call: Call) -> None:
        self.killers += 1


@pytest.mark.parametrize("take", [True, False])
@pytest.mark.parametrize(
    ("status", "speaker", "asks"),
    [
        (429, Speaker.DOOR, 1),
        (503, Speaker.DOOR, 1),
        (408, Speaker.DOOR, 0),
        (429, Speaker.WORKER, 0),
        (200, Speaker.WORKER, 0),
        (422, Speaker.STAGE, 0),
    ],
)
def test_what_the_door_refuses_is_offered_to_others(take: bool, status: int, speaker: Speaker, asks: int) -> None:
    desk = Desk(once_only=(False, True))
    peers = desk.link.peers = Peers(take=take)
    seq, _ = desk.submit(1)
    desk.send()
    desk.hear(answers(seq, 429, Speaker.DOOR))
    assert peers.asked == 0, "what must not be computed twice"
    desk.now += FULL_S
    seq, waiter = desk.submit()
    desk.send()
    desk.hear(answers(seq, status, speaker))
    assert peers.asked == asks
    assert peers.killers == (status == 422)
    assert bool(waiter.answers) is not (take and bool(asks))
    assert not desk.link.waiting


# --- what is long on its way -----------------------------------------------------------------------------------------


def test_a_silence_that_a_body_may_be_the_reason_for_is_none() -> None:
    desk = Desk()
    desk.hear(pulse())
    link = desk.link
    link.submit(Call(0, b"x" * 40_000_000, NOW + 60, b"", Waiter()), NOW)
    desk.send()
    link.asked(NOW)
    assert link.silent_at == NOW + LIMIT_S + 40e6 / SLOW_BYTES_S
    assert not link.is_silent(NOW + MOVE_S + 5)
    assert link.is_silent(NOW + MOVE_S + 40e6 / SLOW_BYTES_S + 0.1)


def test_each_new_connection_that_was_of_no_use_doubles_the_patience() -> None:
    desk = Desk()
    link = desk.link
    now, waits = NOW, []
    for _ in range(7):
        link.asked(now)
        waits.append(link.silent_at - now)
        now = link.silent_at
        link.reconnected(now)
        desk.now = now
        desk.hear(pulse())  # its word comes first, and then the large answer again
    assert waits == [LIMIT_S * 2**turn for turn in range(5)] + [PATIENCE_MOST_S] * 2
    link.asked(now + FORGET_S + 1)
    assert link.silent_at == now + FORGET_S + 1 + LIMIT_S
