"""Results that say where they go, and branches by a field: who gets what, in which form, and who fails of it."""

from __future__ import annotations

import json
import logging
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import Deployment, build
from engine.core import meta, wire
from engine.core.messages import Batch, Status
from engine.core.routing import FINAL, NOWHERE, Fork, Route, Topology
from stages import SSEWorker, Worker, ipc
from stages.compute import ASTRAY, OK, Codec, Computed, Outcome, run_batch
from stages.context import ItemIn
from stages.dryrun import run
from stages.local import Pipeline
from stages.runtime.parcels import Origin, Plan
from stages.ways import Done, Skip, WrongWay, goes_to, plain, text_of, way_of

PRE, EN, DE, POST = range(4)
FORK = Fork("lang", (("en", EN), ("de", DE)))
TABLE = Topology(
    ("pre", "english", "german", "post"),
    (
        Route("/say", (PRE, EN, DE, POST), (FORK, POST, POST, FINAL)),
        Route("/chain", (PRE, EN, POST)),
        Route("/alone", (PRE,)),
        Route("/maybe", (PRE, EN), (Fork("lang", (("en", EN),), FINAL), FINAL)),
    ),
)
WAYS = [way_of(TABLE, route, PRE) for route in range(4)]


class Saying(Worker):
    """Returns what it is given, or what ``made`` makes of that."""

    made: Any = None

    def forward(self, data: Any) -> Any:
        made = type(self).made or (lambda value: value)
        return [made(value) for value in data] if isinstance(data, list) else made(data)


def items(route: int, values: list[Any]) -> list[ItemIn]:
    way = WAYS[route]
    return [
        ItemIn(number, json.dumps(value).encode(), first=True, last=way.last, meta=meta.pack(f"r{number}"), way=way)
        for number, value in enumerate(values)
    ]


def compute(
    route: int, values: list[Any], made: Any = None, *, size: int = 8, worker: type[Saying] = Saying
) -> Computed:
    class Own(worker):  # type: ignore[misc, valid-type]
        pass

    Own.made = made
    one = Own()
    one.max_batch_size = size
    return run_batch(one, items(route, values), max_batch_size=size)


# --- what is chosen --------------------------------------------------------------------------------------------------


class Language(str, Enum):
    EN = "en"


class Struct(msgspec.Struct):
    lang: Any


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"lang": "en"}, "en"),
        ({"lang": Language.EN}, "en"),
        ({"lang": 3}, "3"),
        ({"lang": True}, "true"),
        ({"lang": False}, "false"),
        ({"lang": None}, None),
        ({"lang": 1.5}, None),
        ({"lang": ["en"]}, None),
        ({}, None),
        ([1], None),
        (None, None),
        (Struct("de"), "de"),
    ],
)
def test_a_branch_is_called_by_text(value: Any, text: str | None) -> None:
    assert text_of(value, "lang") == text


def test_what_comes_next_by_each_kind_of_result() -> None:
    assert goes_to(TABLE, 0, PRE, {"lang": "de"}) == DE
    assert goes_to(TABLE, 0, PRE, {"lang": "fr"}) == NOWHERE
    assert goes_to(TABLE, 3, PRE, {"lang": "fr"}) == FINAL
    assert goes_to(TABLE, 0, PRE, Done(1)) == FINAL
    assert goes_to(TABLE, 0, PRE, Skip(1, to="post")) == POST
    assert goes_to(TABLE, 0, EN, Skip(1, to="german")) == NOWHERE
    assert goes_to(TABLE, 1, PRE, {"lang": "de"}) == EN
    assert plain([Done(1), Skip(2, to="x"), 3]) == [1, 2, 3]


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("psot", "expected one of english, german, post; did you mean post?"),
        ("pre", "expected one of english, german, post"),
        (3, "a int"),
        (None, "expected one of"),
        ("x" * 500, "expected one of"),
    ],
)
def test_a_target_that_is_none_is_told_in_words(to: Any, words: str) -> None:
    with pytest.raises(WrongWay) as caught:
        WAYS[0].of_skip(Skip(1, to=to))
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_last_stage_has_nowhere_to_skip_to() -> None:
    with pytest.raises(WrongWay, match="no stage follows"):
        WAYS[2].of_skip(Skip(1, to="post"))


# --- in a batch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 8])
def test_each_item_of_a_batch_goes_its_own_way(size: int) -> None:
    ways = {
        "plain": lambda value: value,
        "done": lambda value: Done({"early": True}),
        "post": lambda value: Skip([value], to="post"),
        "wrong": lambda value: Skip(value, to="nowhere"),
        "fails": lambda value: ValueError("no") if size > 1 else (_ for _ in ()).throw(ValueError("no")),
    }
    names = ["plain", "done", "post", "wrong", "fails", "plain"]

    def made(value: str) -> Any:
        result = ways[value](value)
        return next(result) if hasattr(result, "__next__") else result

    computed = compute(1, names, made, size=size)
    assert [outcome.status for outcome in computed.outcomes] == [200, 200, 200, 500, 500, 200]
    assert computed.targets == {1: FINAL, 2: POST}
    assert computed.outcomes[1].payload == b'{"early":true}'  # as the last stage's result
    assert ipc.unpack(computed.outcomes[2].payload) == ["post"]
    assert computed.outcomes[3] == ASTRAY
    assert ipc.unpack(computed.outcomes[0].payload) == "plain"


def test_a_wrong_target_fails_alone_and_tells_its_operator(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "stageline.compute"):
        computed = compute(0, [{"lang": "en"}, {"lang": "fr"}, {"lang": "de"}])
    assert [outcome.status for outcome in computed.outcomes] == [200, 500, 200]
    assert computed.targets == {0: EN, 2: DE}
    (record,) = caplog.records
    assert 'route /say branches behind stage pre by "lang"' in record.message
    assert "fr" not in record.message  # it is the client's
    assert record.__dict__["request_id"] == "r1"
    assert b"pre" not in bytes(ASTRAY.payload)  # type: ignore[arg-type]  # and the client learns nothing


@given(st.lists(st.sampled_from(["en", "de", "fr", None]), min_size=1, max_size=20), st.sampled_from([1, 8]))
def test_branches_are_taken_by_what_is_there_however_the_batch_is_encoded(langs: list[str | None], size: int) -> None:
    values = [{"lang": lang} for lang in langs]
    for start in range(0, len(values), size):
        part = values[start : start + size]
        computed = compute(3, part, size=size)
        for position, value in enumerate(part):
            outcome = computed.outcomes[position]
            assert outcome.status == OK
            if value["lang"] == "en":
                assert computed.targets[position] == EN
                assert ipc.unpack(outcome.payload) == value
            else:  # the route ends here for all others
                assert computed.targets[position] == FINAL
                assert json.loads(outcome.payload) == value  # type: ignore[arg-type]


def test_done_at_the_last_stage_is_its_result() -> None:
    computed = compute(2, ["x"], Done)
    assert computed.outcomes == [Outcome(OK, b'"x"')]
    assert not computed.targets


def test_an_early_answer_is_made_by_the_stages_own_serialize_which_may_ask_for_the_request() -> None:
    class Own(Saying):
        def serialize(self, data: Any) -> bytes:
            return f"{self.context().request_id}:{data}".encode()

    computed = compute(0, [1, 2], Done, worker=Own)
    assert [outcome.payload for outcome in computed.outcomes] == [b"r0:1", b"r1:2"]


def test_what_cannot_be_encoded_fails_alone() -> None:
    computed = compute(1, [1, 2, 3], lambda value: [Done(object()), Skip(lambda: 1, to="post"), value][value - 1])
    assert [outcome.status for outcome in computed.outcomes] == [500, 500, 200]
    assert not computed.targets


def test_a_skipped_value_has_to_fit_where_it_goes_and_stays_off_devices() -> None:
    codec = Codec(Saying(), most_between=10_000, most_afar=100)
    assert codec.encode_between(b"x" * 1000)
    with pytest.raises(Exception, match="max_queue_bytes of a later stage is 100"):
        codec.encode_between(b"x" * 1000, afar=True)


def test_a_stage_that_streams_says_done_only_at_the_end() -> None:
    class Streaming(SSEWorker):
        def forward(self, data: Any) -> Any:
            return Done(data)

    (outcome,) = run_batch(Streaming(), items(0, [{}]), max_batch_size=1).outcomes
    assert outcome == ASTRAY


def test_an_older_broker_is_not_told_what_it_would_take_for_a_mistake(caplog: pytest.LogCaptureFixture) -> None:
    plan = Plan(TABLE, PRE, protocol=2)
    (item,) = plan.items(batch([1]), [b"1"], 0)

    class Early(Worker):
        def forward(self, data: Any) -> Any:
            return Done(data)

    (outcome,) = run_batch(Early(), [item], max_batch_size=1).outcomes
    assert outcome == ASTRAY
    assert "older version" in caplog.text


def test_where_there_is_no_route_a_done_is_its_result_and_a_skip_leads_nowhere() -> None:
    assert run_batch(Saying(), [ItemIn(0, b"1")], max_batch_size=1).outcomes[0].payload == b"1"
    Saying.made = Done
    try:
        assert run_batch(Saying(), [ItemIn(0, b"1")], max_batch_size=1).outcomes[0].payload == b"1"
        Saying.made = lambda value: Skip(value, to="post")
        assert run_batch(Saying(), [ItemIn(0, b"1")], max_batch_size=1).outcomes[0].status == Status.FAILED
    finally:
        Saying.made = None


# --- in parcels ------------------------------------------------------------------------------------------------------


def batch(routes: list[int]) -> Batch:
    n = len(routes)
    return Batch(
        1,
        0,
        "full",
        list(range(n)),
        routes,
        [10] * n,
        [1] * n,
        [meta.pack("r")] * n,
        [41] * n,
        [wire.pack_step(1, 2, 3)] * n,
    )


def test_steps_of_a_trail_stand_where_their_stages_do() -> None:
    """Whatever was passed over: so the times that a client is shown are of the stages that they are shown for."""
    plan = Plan(TABLE, PRE)
    work = batch([0, 0, 0, 0])
    for index in range(4):
        work.trails[index] = b""
    outcomes = [Outcome(OK, b"x")] * 4
    targets = {0: EN, 1: DE, 2: POST, 3: FINAL}
    parcels = plan.results(Origin(PRE, 5), work, outcomes, mime="m", compute_us=7, targets=targets)
    nothing, own = (0, 0, 0), (41, 0, 7)
    assert {target: wire.unpack_trail(results.trails[0]) for target, results, _ in parcels} == {
        EN: [own],
        DE: [own, nothing],
        POST: [own, nothing, nothing],
        FINAL: [own, nothing, nothing, nothing],
    }
    assert {target: results.mime for target, results, _ in parcels} == {EN: "", DE: "", POST: "", FINAL: "m"}


def test_behind_a_branch_the_others_are_passed_over() -> None:
    plan = Plan(TABLE, EN)
    ((target, results, _),) = plan.results(Origin(EN, 5), batch([0]), [Outcome(OK, b"x")], mime="m", compute_us=7)
    assert target == POST
    assert wire.unpack_trail(results.trails[0]) == [(1, 2, 3), (41, 0, 7), (0, 0, 0)]
    assert Plan(TABLE, PRE).targets == {EN, DE, FINAL}  # where a socket is made at once


# --- whole routes in one process -------------------------------------------------------------------------------------

SERVICE = """
from engine import Done, Skip, Worker

class Pre(Worker):
    example = {"lang": "en"}
    def forward(self, data):
        if data.get("do") == "done":
            return Done({"early": True})
        return Skip(data, to=data["to"]) if "to" in data else data

class Via(Worker):
    def forward(self, data):
        return {**data, "via": [*data.get("via", []), self.stage]}
"""


def deployment(folder: Path, ways: Any) -> Deployment:
    (folder / "branching.py").write_text(SERVICE)
    names = ["english", "german", "post"]
    stages = [
        {"name": "pre", "worker": "branching:Pre"},
        *[{"name": name, "worker": "branching:Via"} for name in names],
    ]
    data = {"stage": stages, "route": [{"path": "/say", "stages": ways}]}
    return build(data, file=folder / "stages.toml", label="stages.toml", flags={}, environ={})


CHOICE = {"by": "lang", "of": {"en": "english", "de": "german"}, "default": "english"}


def test_a_pipeline_without_sockets_goes_the_same_ways(tmp_path: Path) -> None:
    with Pipeline(deployment(tmp_path, ["pre", CHOICE, "post"])) as service:

        def via(body: Any) -> Any:
            reply = service.call("/say", json.dumps(body).encode())
            return json.loads(reply.body).get("via") if reply.status == OK else reply.status

        assert via({"lang": "en"}) == ["english", "post"]
        assert via({"lang": "de"}) == ["german", "post"]
        assert via({"lang": "fr"}) == ["english", "post"]
        assert via({"to": "post"}) == ["post"]
        assert via({"to": "german"}) == ["german", "post"]
        assert via({"to": "pre"}) == 500
        assert service.call("/say", b'{"do": "done"}').body == b'{"early":true}'


def test_every_branch_is_checked_with_what_takes_it_or_else_with_what_takes_another(tmp_path: Path) -> None:
    findings = {finding.stage: finding for finding in run(deployment(tmp_path, ["pre", CHOICE, "post"]))}
    assert {finding.status for finding in findings.values()} == {"ok"}
    assert findings["english"].fed_by == findings["german"].fed_by == "pre"
    assert findings["post"].fed_by == "german"
