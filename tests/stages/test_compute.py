"""One batch in, one outcome per item out: every kind of failure, and who it strikes."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.messages import OWN_HEADERS_MOST, Status
from engine.core.meta import pack
from engine.errors import (
    ClientError,
    EncodingError,
    EngineError,
    EngineTimeoutError,
    ServerError,
    ValidationError,
    WorkerBroken,
)
from stages import Worker, ipc
from stages.compute import (
    BODY_MAX,
    Codec,
    Outcome,
    Run,
    WrongResults,
    as_results,
    call_plainly,
    never,
    none,
    outcome_of,
    run_batch,
)
from stages.context import ItemIn
from stages.costing import by_cost, coster_of


class Doubling(Worker):
    """Doubles numbers; a value may be told to fail instead. Remembers what forward was given."""

    def __init__(self, answer: Callable[[list[Any]], Any] | None = None) -> None:
        self.given: list[Any] = []
        self.answer = answer

    def forward(self, data: Any) -> Any:
        self.given.append(data)
        if self.answer is not None:
            return self.answer(data)
        return [self.one(value) for value in data] if isinstance(data, list) else self.one(data)

    def one(self, value: Any) -> Any:
        if value == "validation":
            raise ValidationError("'x'")
        if value == "bug":
            raise ZeroDivisionError("secret")
        return value * 2


def items(*values: object, **fields: Any) -> list[ItemIn]:
    return [
        ItemIn(uid, value if isinstance(value, bytes) else json.dumps(value).encode(), meta=pack(f"r{uid}"), **fields)
        for uid, value in enumerate(values)
    ]


def outcomes(worker: Worker, given: Sequence[ItemIn], size: int = 8, **options: Any) -> list[tuple[int, bytes]]:
    computed = run_batch(worker, given, max_batch_size=size, **options)
    return [(outcome.status, bytes(outcome.payload)) for outcome in computed.outcomes]  # type: ignore[arg-type]


INTERNAL = (500, b"inference internal error")


def raising(error: BaseException) -> Callable[[Any], Any]:
    def answer(_data: Any) -> Any:
        raise error

    return answer


def test_a_batch_is_decoded_computed_and_encoded_in_order() -> None:
    worker = Doubling()
    assert outcomes(worker, items(1, 2, 3)) == [(200, b"2"), (200, b"4"), (200, b"6")]
    assert worker.given == [[1, 2, 3]]


def test_max_batch_size_one_passes_single_values() -> None:
    worker = Doubling()
    assert outcomes(worker, items(1), size=1) == [(200, b"2")]
    assert worker.given == [1]


def test_a_batch_of_one_is_still_a_list() -> None:
    worker = Doubling()
    assert outcomes(worker, items(1)) == [(200, b"2")]
    assert worker.given == [[1]]


class Teapot(EngineError):
    status = 418
    prefix = "teapot"
    headers = {"x-tea": "green"}


class Broken(EngineError):
    def __str__(self) -> str:
        raise RuntimeError("cannot even say")


class Lying(EngineError):
    status = 200


class Own(EngineError):
    status = 409
    headers = {"Content-Type": "never/this", "x-a": "b"}

    def __init__(self, body: object, mime: str = "") -> None:
        super().__init__("words for the log")
        self.body = body
        self.mime = mime


@pytest.mark.parametrize(
    ("error", "body", "mime"),
    [
        (Own({"error": {"code": 7}}), b'{"error":{"code":7}}', "application/json"),
        (Own("words"), b"words", "text/plain; charset=utf-8"),
        (Own(b"\0"), b"\0", "application/octet-stream"),
        (Own([1], "application/x-mine"), b"[1]", "application/x-mine"),
        (Own(b""), b"", "application/octet-stream"),
    ],
)
def test_an_error_may_bring_a_body_of_its_own(error: Own, body: bytes, mime: str) -> None:
    assert outcome_of(error) == Outcome(409, body, {"x-a": "b", "content-type": mime})


def test_an_error_that_brings_too_much_tells_the_client_nothing() -> None:
    """What it brings travels in the header of a parcel, or is held for a client that has asked for none of it."""
    large = Own("words")
    large.headers = {"x-a": "b" * OWN_HEADERS_MOST}
    for error in (Own(b"x" * (BODY_MAX + 1)), large):
        assert outcome_of(error) == Outcome(500, b"inference internal error")
    assert outcome_of(Own(b"x" * BODY_MAX)).status == 409


def test_a_body_that_cannot_be_written_tells_the_client_nothing() -> None:
    assert outcome_of(Own(object())) == Outcome(500, b"inference internal error")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ClientError("no\nway"), Outcome(400, b"bad request: no - way")),
        (ValidationError("'x'"), Outcome(422, b"request validation error: 'x'")),
        (ServerError("sorry"), Outcome(500, b"internal error: sorry")),
        (EncodingError("odd"), Outcome(500, b"encoding error: odd")),
        (EngineTimeoutError(), Outcome(408, b"inference timeout")),
        (Teapot(), Outcome(418, b"teapot: teapot", {"x-tea": "green"})),
        (Broken(), Outcome(500, b"inference internal error")),
        (Lying("fine"), Outcome(500, b"inference internal error")),
        (ValueError("/secret/path"), Outcome(500, b"inference internal error")),
        (ClientError("\ud800"), Outcome(400, b"bad request: ?")),
    ],
)
def test_what_a_client_learns_of_each_error(error: BaseException, expected: Outcome) -> None:
    assert outcome_of(error) == expected


def test_long_messages_are_cut() -> None:
    assert len(bytes(outcome_of(ClientError("x" * 100_000)).payload)) == 8192  # type: ignore[arg-type]


# --- decode ----------------------------------------------------------------------------------------------------------


def test_malformed_item_fails_alone_and_is_not_given_to_forward() -> None:
    worker = Doubling()
    good, bad, empty = outcomes(worker, items(1, b"{", b""))
    assert good == (200, b"2")
    assert bad[0] == empty[0] == 400
    assert bad[1].startswith(b"decoding error: ")
    assert worker.given == [[1]]


def test_forward_is_not_called_when_nothing_could_be_decoded() -> None:
    worker = Doubling()
    assert [status for status, _ in outcomes(worker, items(b"{", b"["))] == [400, 400]
    assert worker.given == []


def test_exception_in_deserialize_says_nothing_to_the_client(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(Doubling):
        def deserialize(self, data: bytes) -> Any:
            raise KeyError("secret")

    assert outcomes(Odd(), items(1)) == [INTERNAL]
    assert "secret" in caplog.text


def test_deserialize_gets_bytes_whatever_arrived() -> None:
    worker = Doubling()
    views = [ItemIn(0, memoryview(b"21")), ItemIn(1, (b"2", memoryview(b"1")))]
    assert outcomes(worker, views) == [(200, b"42"), (200, b"42")]


# --- forward: isolation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "calls"),
    [
        ([1, 2, 3, "bug"], [4, 2, 2, 1, 1]),
        (["bug", 1, 2, 3], [4, 2, 1, 1, 2]),
        ([1, "bug", 2], [3, 2, 1, 1, 1]),
        (["bug"], [1]),
        (["bug", "bug"], [2, 1, 1]),
    ],
)
def test_only_the_guilty_fail_and_halves_are_called(values: list[Any], calls: list[int]) -> None:
    worker = Doubling()
    expected = [INTERNAL if value == "bug" else (200, json.dumps(value * 2).encode()) for value in values]
    assert outcomes(worker, items(*values)) == expected
    assert [len(data) for data in worker.given] == calls


def test_a_forward_that_changes_its_values_gets_them_anew_when_it_is_called_again() -> None:
    def answer(data: list[Any]) -> list[Any]:
        for value in data:
            value["n"] *= 10  # in place, before the failure
        if any(value["n"] == 20 for value in data):
            raise ValidationError("no")
        return data

    found = outcomes(Doubling(answer), items({"n": 1}, {"n": 2}, {"n": 3}))
    assert found == [(200, b'{"n":10}'), (422, b"request validation error: no"), (200, b'{"n":30}')]


def test_a_result_that_cannot_be_passed_on_fails_alone_and_tells_only_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = [msgspec.structs.replace(item, last=False) for item in items(1, 2)]
    good, bad = outcomes(Doubling(lambda data: [data[0], {"held": lambda: None}]), given)
    assert good[0] == 200
    assert bad == (500, b"encoding error: the result cannot be passed on to the next stage")
    assert "lambda" in caplog.text


def test_each_guilty_item_gets_its_own_message() -> None:
    assert outcomes(Doubling(), items(1, "validation", "bug", 2)) == [
        (200, b"2"),
        (422, b"request validation error: 'x'"),
        INTERNAL,
        (200, b"4"),
    ]


def test_without_isolation_the_batch_fails_together() -> None:
    worker = Doubling()
    assert outcomes(worker, items(1, "bug", 2), isolate=False) == [INTERNAL] * 3
    assert len(worker.given) == 1


def test_timeout_fails_the_batch_and_is_not_tried_again() -> None:
    worker = Doubling(raising(EngineTimeoutError()))
    assert outcomes(worker, items(1, 2)) == [(408, b"inference timeout")] * 2
    assert len(worker.given) == 1


def test_items_that_expire_meanwhile_are_not_tried_again() -> None:
    worker = Doubling()
    gone: set[int] = set()

    def call(function: Callable[[Any], Any], argument: Any) -> Any:
        try:
            return function(argument)
        finally:
            gone.add(2)

    result = outcomes(worker, items(1, "bug", 3, 4), call=call, expired=lambda _: gone)
    assert result == [(200, b"2"), INTERNAL, (Status.SKIPPED, b""), (200, b"8")]
    assert worker.given == [[1, "bug", 3, 4], [1, "bug"], [1], ["bug"], [4]]


def test_expired_items_are_skipped_undecoded() -> None:
    worker = Doubling()
    assert outcomes(worker, items(b"{", 2), expired=lambda _: {0}) == [(0, b""), (200, b"4")]


def test_a_stage_that_fails_for_everybody_logs_one_traceback(caplog: pytest.LogCaptureFixture) -> None:
    assert outcomes(Doubling(raising(ZeroDivisionError("down"))), items(1, 2, 3, 4)) == [INTERNAL] * 4
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.__dict__["request_ids"] == ["r0", "r1", "r2", "r3"]


def frames(record: logging.LogRecord) -> list[str]:
    """The files of the traceback that a line shows."""
    shown = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
    return [Path(line.split('"')[1]).name for line in shown.splitlines() if line.startswith('  File "')]


@pytest.mark.parametrize("size", [1, 8])
def test_a_logged_traceback_begins_at_the_users_own_line(size: int, caplog: pytest.LogCaptureFixture) -> None:
    def answer(data: Any) -> Any:
        try:
            return data["missing"]
        except Exception as error:
            raise RuntimeError("no such key") from error

    assert outcomes(Doubling(answer), items(1), size) == [INTERNAL]
    (record,) = caplog.records
    assert set(frames(record)) == {Path(__file__).name}
    assert record.getMessage() == "forward failed"


class Unsendable:
    def __reduce__(self) -> Any:
        raise TypeError("holds a lock")


@pytest.mark.parametrize(
    ("result", "files"),
    [(Unsendable(), {Path(__file__).name}), (lambda: 1, set())],
)
def test_what_could_not_be_encoded_is_told_in_a_line_with_frames_only_of_the_users(
    result: object, files: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    outcomes(Doubling(lambda data: result), items(1, last=False), 1)
    (record,) = caplog.records
    assert record.getMessage().startswith("serialize failed: EncodingError: the result cannot be passed on")
    assert set(frames(record)) - {"pickle.py"} == files


def test_clients_mistakes_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outcomes(Doubling(), items("validation", b"{"))
    assert caplog.records == []


class Panic(BaseException):
    """As native code's bindings raise it."""


class Group(BaseException):
    def __str__(self) -> str:
        raise Panic("not even its text")


ENDINGS = [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError(), Panic("stride"), Group()]


def on(method: str, error: BaseException) -> Doubling:
    """A worker whose ``method`` raises it where it meets 13."""

    class Ending(Doubling):
        def deserialize(self, data: bytes) -> Any:
            if method == "deserialize" and data == b"13":
                raise error
            return super().deserialize(data)

        def one(self, value: Any) -> Any:
            if method == "forward" and value == 13:
                raise error
            return super().one(value)

        def serialize(self, data: Any) -> bytes:
            if method == "serialize" and data == 26:
                raise error
            return super().serialize(data)

    return Ending()


@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("method", ["deserialize", "forward", "serialize"])
@pytest.mark.parametrize("error", ENDINGS, ids=lambda error: type(error).__name__)
def test_whatever_comes_out_of_user_code_fails_that_item(error: BaseException, method: str, size: int) -> None:
    computed = outcomes(on(method, error), items(1, 13, 2), size, passing=())
    assert computed == [(200, b"2"), INTERNAL, (200, b"4")]


def test_offline_a_ctrl_c_passes_through_and_nothing_else() -> None:
    with pytest.raises(KeyboardInterrupt):
        outcomes(on("forward", KeyboardInterrupt()), items(1, 13))
    assert outcomes(on("forward", SystemExit()), items(1, 13)) == [(200, b"2"), INTERNAL]


class Unspeakable(EngineError):
    @property
    def headers(self) -> Any:  # type: ignore[override]  # a user may do this
        raise Panic("no headers")


class Odd:
    """A name that cannot be a header's."""

    def __str__(self) -> str:
        raise Panic("no name")


def test_an_error_class_that_cannot_be_read_fails_its_item_alone() -> None:
    named = ServerError("x")
    named.headers = {Odd(): "x"}  # type: ignore[dict-item]  # a user may do this
    for error in (Unspeakable("x"), named):
        assert outcomes(on("forward", error), items(1, 13), passing=()) == [(200, b"2"), INTERNAL]


class Shy:
    """A result that does not say what it is."""

    @property
    def __class__(self) -> Any:
        raise Panic("none of your business")

    __class__ = __class__  # type: ignore[assignment]


@pytest.mark.parametrize("last", [True, False])
def test_a_result_that_cannot_even_be_looked_at_fails_alone(last: bool) -> None:
    given = items(1, 2, last=last)
    first, second = outcomes(Doubling(lambda data: [Shy(), data[-1]]), given, passing=())
    assert (first[0], second[0]) == (500, 200)


# --- processes of no more use, and memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["deserialize", "forward", "serialize"])
def test_a_broken_process_answers_nothing(method: str) -> None:
    with pytest.raises(WorkerBroken, match="gone"):
        outcomes(on(method, WorkerBroken("gone")), items(1, 13, 2))


def test_a_device_that_refuses_every_call_breaks_its_process() -> None:
    refusal = RuntimeError("CUDA error: device-side assert triggered")
    for worker in (Doubling(raising(refusal)), Doubling(lambda data: [refusal, *data[1:]])):
        with pytest.raises(WorkerBroken, match="RuntimeError: CUDA error: device-side assert triggered") as caught:
            outcomes(worker, items(1, 2))
        assert caught.value.__cause__ is refusal


def fitting(most: int) -> Callable[[list[Any]], list[Any]]:
    def answer(data: list[Any]) -> list[Any]:
        if len(data) > most:
            raise MemoryError
        return data

    return answer


def run(worker: Worker, given: Sequence[ItemIn], **options: Any) -> tuple[Run, list[int]]:
    made = Run(
        worker,
        given,
        Codec(worker),
        max_batch_size=8,
        expired=none,
        begun=never,
        call=call_plainly,
        **{"isolate": True, **options},
    )
    return made, [outcome.status for outcome in made.compute().outcomes]


def test_out_of_memory_is_narrowed_and_what_fitted_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[int] = []
    monkeypatch.setattr("stages.device.empty_caches", lambda: emptied.append(1))
    worker = Doubling(fitting(2))
    made, statuses = run(worker, items(*range(8)))
    assert statuses == [200] * 8
    assert (made.exhausted, made.fitted) == (8, 2)
    assert [len(data) for data in worker.given] == [8, 4, 2, 2, 4, 2, 2]
    assert len(emptied) == 3


def test_a_batch_is_cut_to_what_fits_in_order() -> None:
    worker = Doubling(fitting(3))
    made, statuses = run(worker, items(*range(8)), most=3)
    assert statuses == [200] * 8
    assert worker.given == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert (made.exhausted, made.fitted) == (0, 3)


def test_where_calling_twice_is_forbidden_the_batch_fails_and_its_size_is_told() -> None:
    made, statuses = run(Doubling(fitting(2)), items(*range(4)), isolate=False)
    assert statuses == [500] * 4
    assert (made.exhausted, made.fitted) == (4, 0)


def test_what_the_failed_call_held_is_let_go_before_the_next() -> None:
    class Tensor:
        pass

    alive: list[weakref.ref[Tensor]] = []

    def answer(data: list[Any]) -> list[Any]:
        assert all(one() is None for one in alive)
        tensor = Tensor()
        alive.append(weakref.ref(tensor))
        if len(data) > 1:
            raise MemoryError
        return data

    assert outcomes(Doubling(answer), items(1, 2)) == [(200, b"1"), (200, b"2")]
    assert len(alive) == 3


# --- sizes that are allowed ------------------------------------------------------------------------------------------


def test_a_batch_is_padded_with_copies_of_its_last_value_and_answers_the_others_alone() -> None:
    worker = Doubling(lambda data: [value["n"] * 2 for value in data])
    made, statuses = run(worker, items({"n": 1}, {"n": 2}, {"n": 3}), sizes=(1, 4, 8))
    assert statuses == [200] * 3
    assert worker.given == [[{"n": 1}, {"n": 2}, {"n": 3}, {"n": 3}]]
    assert worker.given[0][3] is not worker.given[0][2]
    assert (made.padding, made.fitted, made.calls) == (1, 4, 1)
    assert [outcome.payload for outcome in made.outcomes if outcome] == [b"2", b"4", b"6"]


def test_a_batch_of_an_allowed_size_is_left_as_it_is() -> None:
    worker = Doubling()
    made, _ = run(worker, items(1, 2, 3, 4), sizes=(1, 4, 8))
    assert worker.given == [[1, 2, 3, 4]]
    assert made.padding == 0


def test_a_forward_that_changes_what_it_gets_may_be_padded() -> None:
    def answer(data: list[Any]) -> list[Any]:
        return [value.pop("n") for value in data]

    assert outcomes(Doubling(answer), items({"n": 1}), sizes=(8,)) == [(200, b"1")]


def test_padding_knows_what_it_is_and_is_otherwise_as_the_item_that_is_repeated() -> None:
    class Asking(Doubling):
        def forward(self, data: Any) -> Any:
            found = [self.context(i) for i in range(len(data))]
            self.given.append([(context.request_id, context.padding, context.cancelled) for context in found])
            with pytest.raises(IndexError):
                self.context(len(data))
            return data

    worker = Asking()
    run(worker, items(1, 2), sizes=(4,))
    assert worker.given == [[("r0", False, False), ("r1", False, False), ("r1", True, False), ("r1", True, False)]]


@pytest.mark.parametrize("wrong", [ValidationError("of the copy"), ZeroDivisionError("of the copy"), object()])
def test_what_comes_of_a_copy_strikes_nobody(wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    worker = Doubling(lambda data: [*data[:2], *[wrong] * (len(data) - 2)])
    assert outcomes(worker, items(1, 2), sizes=(8,)) == [(200, b"1"), (200, b"2")]
    assert not caplog.records


def test_whoever_fails_is_found_in_sizes_that_are_allowed() -> None:
    worker = Doubling()
    given = items(1, 2, "bug", 3, 4, "validation", 5)
    found = outcomes(worker, given, sizes=(2, 8))
    assert [status for status, _ in found] == [200, 200, 500, 200, 200, 422, 200]
    assert found == outcomes(Doubling(), given)
    assert {len(data) for data in worker.given} == {2, 8}


def test_results_are_counted_with_the_padding(caplog: pytest.LogCaptureFixture) -> None:
    worker = Doubling(lambda data: data[:2])  # as many as there are items, and not as many as it got
    assert outcomes(worker, items(1, 2), sizes=(8,)) == [INTERNAL] * 2
    assert "forward returned 2 results for 8 values" in caplog.text


def test_out_of_memory_is_told_in_sizes_that_are_allowed() -> None:
    worker = Doubling(fitting(2))
    made, statuses = run(worker, items(*range(5)), sizes=(2, 8))
    assert statuses == [200] * 5
    assert (made.exhausted, made.fitted) == (8, 2)
    assert [len(data) for data in worker.given] == [8, 8, 2, 2, 2]
    made, statuses = run(Doubling(fitting(2)), items(*range(5)), sizes=(2, 8), most=2)
    assert (statuses, made.exhausted, made.padding) == ([200] * 5, 0, 1)


@given(st.lists(st.sampled_from([1, 2, "validation", "bug", b"{"]), max_size=20))
def test_everybody_gets_what_he_would_get_alone(values: list[Any]) -> None:
    alone = [outcomes(Doubling(), items(value))[0] for value in values]
    assert outcomes(Doubling(), items(*values), size=32) == alone
    assert outcomes(Doubling(), items(*values), size=32, sizes=(1, 4, 32)) == alone
    assert outcomes(Doubling(), items(*values), size=32, sizes=(32,)) == alone


# --- results ---------------------------------------------------------------------------------------------------------


def test_an_exception_instance_fails_its_item() -> None:
    worker = Doubling(lambda data: [data[0], ValidationError("'x'"), ValueError("secret"), EngineTimeoutError()])
    assert outcomes(worker, items(1, 2, 3, 4)) == [
        (200, b"1"),
        (422, b"request validation error: 'x'"),
        INTERNAL,
        (408, b"inference timeout"),
    ]
    assert len(worker.given) == 1


def generator(n: int) -> Iterator[int]:
    yield from range(n)


@pytest.mark.parametrize("returned", [[1], [1, 2, 3], None, 7, "ab", b"ab", {"a": 1, "b": 2}, {1, 2}, generator(2)])
def test_wrong_results_fail_every_item_where_calling_twice_is_forbidden(
    returned: Any, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Doubling(lambda _data: returned)
    assert outcomes(worker, items(1, 2), isolate=False) == [INTERNAL] * 2
    assert len(worker.given) == 1
    (record,) = caplog.records
    assert "2 values" in record.getMessage()


def test_wrong_results_are_narrowed_and_told_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    worker = Doubling(lambda data: [value for value in data if value != 3])
    assert outcomes(worker, items(1, 2, 3, 4)) == [(200, b"1"), (200, b"2"), INTERNAL, (200, b"4")]
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "forward returned 3 results for 4 values; it is called again on halves",
        "forward returned 0 results for 1 values",
    ]


def test_anything_with_length_and_order_is_a_list_of_results() -> None:
    np = pytest.importorskip("numpy")
    assert as_results((1, 2), 2) == [1, 2]
    assert [row.tolist() for row in as_results(np.eye(2), 2)] == [[1.0, 0.0], [0.0, 1.0]]
    with pytest.raises(WrongResults, match="a ndarray for 1 values"):
        as_results(np.array(1.0), 1)


# --- encode ----------------------------------------------------------------------------------------------------------


def test_unserializable_result_fails_alone() -> None:
    bad, good = outcomes(Doubling(lambda data: [object(), data[1]]), items(1, 2))
    assert bad == (500, b"encoding error: Encoding objects of type object is unsupported")
    assert good == (200, b"2")


def test_numpy_result_is_explained() -> None:
    np = pytest.importorskip("numpy")
    worker = Doubling(lambda _data: [np.zeros(2), np.float32(1)])
    array, scalar = outcomes(worker, items(1, 2))
    assert array[1].endswith(b"call .tolist() on it")
    assert scalar[1].endswith(b"call .item() on it")


class Nowhere(datetime.tzinfo):
    """A value that brings code of its own into its encoding."""

    def utcoffset(self, _: datetime.datetime | None) -> datetime.timedelta:
        raise LookupError("no such zone")


@pytest.mark.parametrize("size", [1, 2])
def test_a_result_whose_own_code_fails_fails_alone(size: int) -> None:
    class Dated(Worker):
        def forward(self, data: Any) -> Any:
            when = datetime.datetime(2000, 1, 1, tzinfo=Nowhere())
            return [[when, "fine"][value] for value in data] if isinstance(data, list) else [when, "fine"][data]

    assert outcomes(Dated(), items(0, 1), size) == [INTERNAL, (200, b'"fine"')]


def test_serialize_must_return_bytes() -> None:
    class Text(Doubling):
        def serialize(self, data: Any) -> Any:
            return bytearray(b"fine") if data == 2 else "text"

    assert outcomes(Text(), items(1, 2)) == [
        (200, b"fine"),
        (500, b"encoding error: serialize must return bytes, not str"),
    ]


# --- mixed routes, hops ----------------------------------------------------------------------------------------------


def test_a_batch_may_mix_first_and_later_last_and_inner_items() -> None:
    mixed = [
        ItemIn(0, b"1", first=True, last=True),
        ItemIn(1, ipc.pack(2), first=False, last=True),
        ItemIn(2, b"3", first=True, last=False),
        ItemIn(3, ipc.pack(4), first=False, last=False),
    ]
    computed = run_batch(Doubling(), mixed, max_batch_size=8).outcomes
    assert [computed[0].payload, computed[1].payload] == [b"2", b"4"]
    assert [ipc.unpack(computed[2].payload), ipc.unpack(computed[3].payload)] == [6, 8]


def test_own_ipc_methods_get_and_give_plain_bytes() -> None:
    np = pytest.importorskip("numpy")

    class Own(Doubling):
        def serialize_ipc(self, data: Any) -> bytes:
            return b"own:" + super().serialize_ipc(data)

        def deserialize_ipc(self, data: bytes) -> Any:
            assert type(data) is bytes
            return super().deserialize_ipc(data.removeprefix(b"own:"))

    own, plain = Codec(Own()), Codec(Doubling())
    array = np.arange(100_000)
    inner = ItemIn(0, b"", first=False, last=False)
    assert type(own.encode(inner, array)) is bytes
    apart = plain.encode(inner, array)
    assert type(apart) is tuple
    # A stage that overrides only its own side can still read a neighbour that does not.
    received = own.decode(msgspec.structs.replace(inner, payload=apart))
    assert (received == array).all()


def test_context_speaks_about_the_call_it_is_asked_in() -> None:
    class Asking(Worker):
        def deserialize(self, data: bytes) -> Any:
            return [self.context().request_id]

        def forward(self, data: Any) -> Any:
            if len(data) > 1:
                raise ValueError("one by one")
            return [[*data[0], self.context(0).request_id]]

        def serialize(self, data: Any) -> bytes:
            return super().serialize([*data, self.context().request_id])

    assert outcomes(Asking(), items(1, 2)) == [(200, b'["r0","r0","r0"]'), (200, b'["r1","r1","r1"]')]


def test_context_is_empty_again_afterwards() -> None:
    worker = Doubling()
    outcomes(worker, items(1))
    assert worker.context().request_id == ""


@pytest.mark.parametrize("own", [False, True])
def test_an_answer_that_is_too_large_fails_alone_and_in_words(own: bool, caplog: pytest.LogCaptureFixture) -> None:
    class Own(Doubling):
        def serialize(self, data: Any) -> bytes:
            return b"%d" % data

    worker = (Own if own else Doubling)()
    given = [ItemIn(position, body, first=True, last=True) for position, body in enumerate((b"1", b"5000", b"2"))]
    with caplog.at_level(logging.WARNING):
        computed = run_batch(worker, given, max_batch_size=8, codec=Codec(worker, most=3)).outcomes
    assert [outcome.status for outcome in computed] == [200, 500, 200]
    assert computed[1].payload == (
        b"encoding error: the answer has 5 bytes, and max_response_size is 3; a larger one is for a stream"
    )
    assert "serialize failed: " in caplog.text
    assert "max_response_size" in caplog.text


def test_what_goes_to_another_stage_is_no_answer() -> None:
    worker = Doubling()
    given = [ItemIn(0, b"5000", first=True, last=False)]
    (outcome,) = run_batch(worker, given, max_batch_size=8, codec=Codec(worker, most=3)).outcomes
    assert ipc.unpack(outcome.payload) == 10000


@pytest.mark.parametrize("own", [False, True])
def test_a_value_that_the_next_stage_never_takes_fails_alone_and_in_words(own: bool) -> None:
    class Own(Doubling):
        def serialize_ipc(self, data: Any) -> bytes:
            return b"x" * 101

    worker = (Own if own else Doubling)()
    codec = Codec(worker, most_between=100)
    given = [ItemIn(0, b"1" * (1 if own else 300), first=True, last=False), ItemIn(1, b"1", first=True, last=False)]
    first, second = run_batch(worker, given, max_batch_size=8, codec=codec).outcomes
    assert first.status == 500
    assert b"max_queue_bytes of the next stage is 100" in bytes(first.payload)  # type: ignore[arg-type]  # one part
    assert second.status == (500 if own else 200)


# --- cost ------------------------------------------------------------------------------------------------------------


class Counted(Doubling):
    """Costs what its class says, or fails to say so."""

    max_batch_cost = 100

    def cost(self, value: Any) -> float:
        if value == "bug":
            raise ZeroDivisionError("secret")
        self.asked = [*getattr(self, "asked", []), self.context().request_id]
        return float(value)


def asked(worker: Worker, given: Sequence[ItemIn], size: int = 8) -> tuple[Run, list[int]]:
    run = Run(
        worker,
        given,
        Codec(worker),
        max_batch_size=size,
        isolate=True,
        expired=lambda _items: (),
        begun=lambda _item: False,
        call=lambda function, argument: function(argument),
        coster=coster_of(worker),
    )
    return run, [outcome.status for outcome in run.compute().outcomes]


@pytest.mark.parametrize("size", [1, 8])
def test_each_value_is_asked_what_it_costs_before_forward_may_change_it(size: int) -> None:
    worker = Counted()
    run, statuses = asked(worker, items(3, b"{", 5), size)
    assert statuses == [200, 400, 200]
    assert run.costs == {0: 3.0, 2: 5.0}
    assert worker.asked == ["r0", "r2"]


def test_a_cost_that_fails_fails_nothing_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    worker = Counted(lambda data: data)
    run, statuses = asked(worker, items("bug", 4, "bug", -1, 1e30))
    assert statuses == [200] * 5
    assert run.costs == {1: 4.0}
    assert [record.message for record in caplog.records].count(
        "Counted.cost failed; such items are batched by their size (it is logged once)"
    ) == 1


def test_nobody_is_asked_without_a_limit_or_a_method() -> None:
    class Free(Counted):
        max_batch_cost = 0

    class Silent(Doubling):
        max_batch_cost = 100

    assert coster_of(Free()) is None
    assert coster_of(Silent()) is None


def test_the_times_of_a_warm_up_are_told_by_what_its_batches_cost() -> None:
    assert by_cost({1: 0.1, 2: 0.2, 4: 0.4}, [3.0, 10.0]) == {3: 0.1, 20: 0.2, 40: 0.4}
    assert by_cost({1: 0.1}, []) == {}
