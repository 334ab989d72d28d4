"""What requests and answers amount to, and what has grown: in counted time, without sockets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from faults import holdings, work
from faults.ledger import Allowed, Ask, Ledger, Tally, percentile
from faults.place import PAGES
from faults.rows import MAIN


class Account:
    """A ledger with three requests of one second, asked at 0, and what is answered to them."""

    def __init__(self, **about: object) -> None:
        self.ledger = Ledger(deadline_s=1.0, late_s=0.5)
        for number in (1, 2, 3):
            self.ledger.asked(Ask(number, {"number": number}, proof=number * 10, **about), 0.0)  # type: ignore[arg-type]

    def answer(self, number: int, of: int | None = None, *, status: int = 200, proof: int | None = None) -> None:
        said = number if of is None else of
        body = json.dumps({"number": said, "proof": said * 10 if proof is None else proof}).encode()
        self.ledger.answered(number, status, body, 0.5)

    def rest(self, *numbers: int) -> Tally:
        for number in numbers:
            self.answer(number)
        return self.ledger.close([])


def kinds(tally: Tally, allowed: Allowed = Allowed()) -> list[str]:  # noqa: B008  # frozen
    return [problem.partition(":")[0] for problem in tally.problems(allowed)]


def test_each_its_own_in_time_is_no_problem() -> None:
    tally = Account().rest(1, 2, 3)
    assert kinds(tally) == []
    assert (tally.sent, tally.right, tally.statuses[200]) == (3, 3, 3)


def test_what_never_comes_is_lost_also_where_connections_may_end() -> None:
    assert kinds(Account().rest(1, 2)) == ["lost"]
    assert kinds(Account().rest(1, 2), Allowed(cut="they may")) == ["lost"]


def test_a_connection_that_ends_is_lost_but_where_it_may() -> None:
    account = Account()
    account.ledger.cut(3, "reset", 0.1)
    tally = account.rest(1, 2)
    assert (tally.lost, kinds(tally), kinds(tally, Allowed(cut="it may"))) == (1, ["lost"], [])


def test_another_answer_and_a_false_one_are_wrong() -> None:
    account = Account()
    account.answer(1, of=2)
    assert kinds(account.rest(2, 3)) == ["wrong"]
    account = Account()
    account.answer(1, proof=7)
    assert kinds(account.rest(2, 3)) == ["wrong"]
    account = Account()
    account.ledger.answered(1, 200, b"[]", 0.1)
    account.ledger.answered(2, 200, b"junk", 0.1)
    assert len(account.rest(3).wrong) == 2


def test_a_second_answer_and_bytes_that_nobody_asked_for_are_double() -> None:
    account = Account()
    account.answer(1)
    account.answer(1)
    assert kinds(account.rest(2, 3)) == ["double"]
    account = Account()
    account.ledger.unasked(b"HTTP/1.1 200 OK")
    assert kinds(account.rest(1, 2, 3)) == ["double"]


def test_what_is_computed_twice_counts_only_where_it_may_not() -> None:
    for once, found in (((), []), (("model",), ["double"]), (("prep",), [])):
        account = Account()
        for number in (1, 2, 3):
            account.answer(number)
        tally = account.ledger.close([("model", 1), ("model", 1), ("prep", 1), ("model", 99), ("model", 99)], once)
        assert kinds(tally) == found
        assert tally.computed == 3


def test_a_deadline_has_a_grace_and_no_more() -> None:
    for at, found in ((1.4, []), (1.6, ["late"])):
        account = Account()
        account.ledger.answered(1, 200, b'{"number": 1, "proof": 10}', at)
        assert kinds(account.rest(2, 3)) == found
    account = Account(deadline_s=0.1)
    assert len(account.rest(1, 2, 3).late) == 0
    account = Account(deadline_s=0.1, expects=frozenset((200, 408)))
    account.ledger.answered(1, 408, b"", 0.7)
    assert kinds(account.rest(2, 3)) == ["late"]


def test_a_status_that_was_not_expected_is_a_problem() -> None:
    account = Account()
    account.answer(1, status=503)
    assert kinds(account.rest(2, 3)) == ["refused"]
    account = Account(expects=frozenset((200, 503)))
    account.answer(1, status=503)
    assert kinds(account.rest(2, 3)) == []


def test_who_left_awaits_nothing() -> None:
    account = Account(leaves_after_s=0.1)
    account.ledger.left(1)
    tally = account.rest(2, 3)
    assert (kinds(tally), tally.left) == ([], 1)


def test_nothing_right_shows_nothing() -> None:
    account = Account(expects=frozenset((503,)))
    for number in (1, 2, 3):
        account.answer(number, status=503)
    assert kinds(account.rest()) == ["empty"]
    with pytest.raises(ValueError, match="asked before"):
        account.ledger.asked(Ask(1, {}, 0), 0.0)


def test_percentiles() -> None:
    assert [percentile(list(range(1, 101)), share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert percentile([], 0.99) == 0


# --- growth -----------------------------------------------------------------------------------------------------------


def samples(what: str, values: list[float]) -> list[dict[str, float]]:
    return [dict.fromkeys(holdings.ROOM, 100.0) | {what: value} for value in values]


@pytest.mark.parametrize("what", list(holdings.ROOM))
def test_what_climbs_is_found_and_what_climbed_once_is_not(what: str) -> None:
    absolute, share = holdings.ROOM[what]
    step = 2 * (absolute + 1000 * share)
    assert holdings.grown(samples(what, [1000 + step * n for n in range(9)])) != []
    for still in ([1000.0] * 9, [1000, 1000 + 9 * step, *[1000 + 9 * step] * 7], [1000, 2000, 1000] * 3):
        assert holdings.grown(samples(what, still)) == []


@pytest.mark.parametrize("what", list(holdings.ROOM))
def test_what_jumps_between_levels_does_not_climb_until_its_low_ones_do(what: str) -> None:
    absolute, share = holdings.ROOM[what]
    step = 2 * (absolute + 1000 * share)
    jumps = [1000.0, 1000 + step] * 3 + [1000, 1000, 1000 + step] * 2 + [1000, 1000 + step, 1000 + step] * 2
    assert holdings.grown(samples(what, jumps)) == []
    leaking = [value + step * (n // 6) for n, value in enumerate(jumps)]
    assert holdings.grown(samples(what, leaking)) != []


def test_of_few_samples_levels_that_are_missing_by_chance_are_no_growth() -> None:
    seen = [0, 3190784, 0, 12730368, 9572352, 6381568, 3190784, 5296128, 0, 9572352, 3190784, 6414336, 6381568, 4243456,
            12730368, 0]  # fmt: skip
    assert holdings.grown(samples("shared memory", seen)) == []
    leaking = [one + (number << 22) for number, one in enumerate(seen)]
    assert holdings.grown(samples("shared memory", leaking)) != []


def test_few_samples_show_nothing() -> None:
    with pytest.raises(ValueError, match="too few"):
        holdings.grown(samples("threads", [1] * 5))


def test_a_proof_is_of_all_parts_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the stages make of it is what the client expects, and nothing else is."""
    monkeypatch.setenv(work.FOLDER, str(tmp_path))
    split, model, join = (work.Step(name) for name in (work.TAKES_APART, "model", work.PUTS_TOGETHER))
    counts = set()
    for number in range(0, 100, work.LOAD_TENTH):
        frame = split.forward({"number": number})
        parts = [model.forward(part) for part in frame.pop("parts")]
        counts.add(len(parts))
        right = work.proof(number, MAIN.through(PAGES))
        assert join.forward({**frame, "parts": parts})["proof"] == right
        if len(parts) > 1:
            for wrong in (parts[:-1], parts[::-1], [*parts, parts[0]]):
                assert join.forward({**frame, "parts": wrong})["proof"] != right
    assert counts == set(range(work.PARTS_MOST + 1))
    for step in (split, model, join):
        os.close(step._journal)
