"""Requests that kill workers: known again by route and body, refused for a while, forgotten in time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.core import wording
from engine.core.batching import Policy
from engine.core.messages import Poison, Speaker
from engine.core.quarantine import FINGERPRINT_BYTES, KEEP_MOST, KEEP_S, Quarantine, fingerprint
from engine.core.stage import StageSpec
from tests.core.twin import FakeFrontend, Twin, topology

SPEC = StageSpec("s0", 1, Policy(4, 1 << 20, 0.0), timeout_s=60.0, kill_after_s=1.0, max_queue_bytes=1 << 20)


def unread() -> bytes:
    raise AssertionError("a body was read that cannot be a poison's")


def of(body: bytes) -> Callable[[], bytes]:
    return lambda: body


def test_only_the_same_body_on_the_same_route_is_refused() -> None:
    quarantine = Quarantine()
    assert not quarantine
    assert quarantine.add(1, 4, fingerprint(b"dead"), 0.0)
    assert quarantine.holds(1, 4, of(b"dead"), 1.0)
    assert not quarantine.holds(1, 4, of(b"good"), 1.0)
    assert not quarantine.holds(0, 4, unread, 1.0)
    assert not quarantine.holds(1, 5, unread, 1.0)
    assert not quarantine.add(1, 4, fingerprint(b"dead"), KEEP_S - 1.0)  # and that lengthens nothing
    assert not quarantine.holds(1, 4, unread, KEEP_S)
    assert not quarantine


def test_it_holds_so_many_and_the_oldest_go_first() -> None:
    quarantine = Quarantine()
    for n in range(KEEP_MOST + 10):
        assert quarantine.add(0, 8, fingerprint(b"%8d" % n), float(n) / 1000)
    assert len(quarantine) == KEEP_MOST
    assert not quarantine.holds(0, 8, of(b"%8d" % 9), 1.0)
    assert quarantine.holds(0, 8, of(b"%8d" % 10), 1.0)
    quarantine.clear()
    assert not quarantine.holds(0, 8, unread, 1.0)


def test_sizes_are_counted_so_that_one_that_goes_leaves_the_other() -> None:
    quarantine = Quarantine()
    quarantine.add(0, 1, fingerprint(b"a"), 0.0)
    quarantine.add(0, 1, fingerprint(b"b"), 1.0)
    assert not quarantine.holds(0, 1, of(b"a"), KEEP_S)
    assert quarantine.holds(0, 1, of(b"b"), KEEP_S)
    assert len(fingerprint(b"")) == FINGERPRINT_BYTES


@pytest.mark.parametrize("same", [True, False])
def test_what_killed_workers_is_refused_whichever_frontend_brings_it(same: bool) -> None:
    twin = Twin(topology(), [SPEC])
    first = twin.frontend("f1")
    other = first if same else twin.frontend("f2")
    worker = twin.worker()
    first.submit(1)
    for attempt in range(SPEC.max_attempts):
        assert not first.answers, attempt
        twin.kill(worker)
        worker = twin.worker()
    answer = only(first, 1)
    assert (answer.status, answer.speaker) == (422, Speaker.STAGE)
    assert answer.headers == dict(wording.DO_NOT_RETRY)
    other.submit(1)  # the same body
    again = only(other, 1, index=1 if same else 0)
    assert (again.status, again.headers) == (422, dict(wording.DO_NOT_RETRY))
    assert again.body == wording.QUARANTINED.encode()
    assert twin.front.stats.rejected == {"poison": 1}
    assert not worker.lane
    other.submit(2)  # another one of that size
    twin.finish(worker)
    assert only(other, 2).status == 200
    twin.pass_time(KEEP_S)
    other.beat()
    for number in (3, 1):
        other.submit(number)
        twin.finish(worker)
        assert other.answers[number][-1].status == 200  # type: ignore[union-attr]
    assert twin.is_empty()


def test_a_poison_of_no_route_is_nothing() -> None:
    twin = Twin(topology(), [SPEC])
    assert not twin.front.refuse_like(Poison(7, 1, b"x" * FINGERPRINT_BYTES), twin.now)
    assert not twin.front.quarantine


def only(frontend: FakeFrontend, number: int, *, index: int = 0):  # type: ignore[no-untyped-def]
    answers = frontend.answers[number]
    assert len(answers) == index + 1
    assert answers[index] is not None
    return answers[index]
