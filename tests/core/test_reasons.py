"""Why a batch left, on its way to the client: by peers that know of it, and by those that do not."""

from __future__ import annotations

import pytest

from engine.core.batching import Policy, Reason
from engine.core.call import Answer, Call, StreamEvent
from engine.core.front import FrontSpec
from engine.core.link import Link
from engine.core.messages import Answers, FrontendPulse, FrontendWelcome, Refused, StageState
from engine.core.reasons import BITS, CODES, NAMES, codes_of, without
from engine.core.routing import Route, Topology
from engine.core.stage import StageSpec
from engine.core.wire import pack_step, unpack_trail
from tests.core.twin import Twin, frontend_words, topology

ONE = Topology(("a",), (Route("/one", (0,)),))


def test_every_reason_has_a_code_that_fits() -> None:
    assert set(CODES) == {reason.value for reason in Reason}
    assert len(NAMES) == BITS + 1
    assert CODES == {"full": 1, "idle": 2, "wait": 3, "deadline": 4, "drain": 5, "replay": 6}  # for ever


def test_a_trail_tells_the_reasons_of_its_steps_and_stays_a_trail_of_times() -> None:
    trail = pack_step(8 * 1000 + CODES["idle"], 255, 7) + pack_step(CODES["full"], 1, 2) + pack_step(16, 0, 0)
    assert [NAMES[code] for code in codes_of(trail)] == ["idle", "full", ""]
    assert [queue for queue, _, _ in unpack_trail(trail)] == [8002, 1, 16]
    assert (codes_of(b""), without(b"")) == (b"", b"")


def test_without_reasons_a_trail_is_the_same_but_for_some_microseconds() -> None:
    trail = pack_step(1001, 255, 7) + pack_step(2**32 - 1, 9, 2**32 - 1)
    assert unpack_trail(without(trail)) == [(1000, 255, 7), (2**32 - 8, 9, 2**32 - 1)]
    assert set(codes_of(without(trail))) == {0}


@pytest.mark.parametrize(("size", "reason"), [(2, "full"), (4, "idle")])
def test_what_the_worker_is_given_says_how_long_an_item_waited_and_why_it_did_not_any_longer(
    size: int, reason: str
) -> None:
    spec = StageSpec("s0", 1, Policy(size, max_wait_s=1.0), 3.0, 1.0, 1 << 20, idempotent=False)  # nothing in advance
    twin = Twin(topology(), [spec])
    worker = twin.worker()
    twin.submit(1)
    twin.submit(2, first=2)
    twin.now += 0.25
    twin.finish(worker)
    ((batch, _),) = worker.lane
    assert batch.reason == reason
    for queue_us in batch.queues_us:
        assert NAMES[queue_us & BITS] == reason
        assert 249_990 < queue_us < 250_008


class Waiter:
    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def answered(self, answer: Answer | None) -> None:
        assert answer is not None
        self.answers.append(answer)

    def event(self, event: StreamEvent) -> None:
        raise AssertionError


@pytest.mark.parametrize(("reasons", "code"), [(True, CODES["wait"]), (False, 0)])
def test_a_frontend_believes_a_reason_only_of_a_broker_that_says_that_it_tells_them(reasons: bool, code: int) -> None:
    link = Link(frontend_words(ONE), ONE, now=0.0)
    link.handle(FrontendWelcome(2, 7, 1, ["a"], [("/one", [0])], reasons), [], 0.0)
    link.handle(FrontendPulse(False, 9, [StageState("a", 1, 1, 0, 0, 0)]), [], 0.0)
    waiter = Waiter()
    seq = link.submit(Call(0, b"x", 5.0, b"", waiter), 0.0)
    trail = pack_step(8 + CODES["wait"], 5, 6)
    link.handle(Answers([seq], [200], ["text/plain"], [trail]), [b"y"], 0.1)
    assert [*codes_of(waiter.answers[0].trail)] == [code]


def test_why_a_request_is_refused_comes_to_who_waits_for_its_answer() -> None:
    twin = Twin(topology(), [StageSpec("s0", 1, Policy(1), 3.0, 1.0, 1 << 20)], FrontSpec(1, 1 << 20))
    twin.worker()
    frontend = twin.frontend("f")
    frontend.submit(1, budget_s=2.0)
    frontend.submit(2, budget_s=2.0)
    twin.now += 2.0
    twin.run()

    def told(number: int) -> Refused | None:
        (answer,) = frontend.answers[number]
        assert answer is not None
        return answer.refused

    assert told(1) == Refused("expired")
    assert told(2) == Refused("capacity")
