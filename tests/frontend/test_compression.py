"""gzip and zstd, both ways: what is chosen, what is refused, and what a bomb costs."""

from __future__ import annotations

import asyncio
import gzip
import random
import threading
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import Exchange, FakeClient, Response, Service, run
from hypothesis import given
from hypothesis import strategies as st
from running import frontend

from engine.config.schema import FrontendSection
from engine.core.call import Answer
from engine.errors import StartError
from frontend import compression, unpacking
from frontend import head as heads
from frontend.body import Body
from frontend.compression import choose
from frontend.exchange import Exchange as HttpExchange
from frontend.gate import Gate, Terms
from frontend.unpacking import Corrupt, TooLarge, Unpacking

zstd: Any = unpacking.zstd()
PACK = {"gzip": gzip.compress, "zstd": zstd.compress, "deflate": zlib.compress}
LARGE = b'{"a": 1}' * 1000


def decompress(coding: str, data: bytes, limit: int) -> bytes:
    work = Unpacking(coding, data, limit)
    while not work.done:
        work.step()
    return work.result()


def service(**options: Any) -> Service:
    return Service(FakeClient(), FrontendSection(address="127.0.0.1", port=0, compression=True, **options))


def post(body: bytes, *headers: tuple[str, str], made: Service | None = None) -> Response:
    answer: Response = (made or service()).call("POST", "/inference", body, headers=headers)
    return answer


# --- what an answer is compressed with ---


@pytest.mark.parametrize(
    ("accept", "coding", "forced"),
    [
        (b"", "", False),
        (b"gzip", "gzip", False),
        (b"x-gzip", "gzip", False),
        (b"zstd", "zstd", False),
        (b"gzip, deflate, br", "gzip", False),
        (b"deflate", "deflate", False),
        (b"gzip, deflate, br, zstd", "zstd", False),
        (b"GZIP;Q=1", "gzip", False),
        (b"gzip;q=1.0, zstd;q=0.9", "gzip", False),
        (b"gzip;q=0.5, zstd;q=0.501", "zstd", False),
        (b"gzip;q=0", "", False),
        (b"gzip;q=0, zstd;q=0", "", False),
        (b"*", "zstd", False),
        (b"*;q=0.1, zstd;q=0", "gzip", False),
        (b"*;q=0", "", False),
        (b"br", "", False),
        (b"identity", "", False),
        (b"identity, gzip;q=0.5", "", False),
        (b"identity;q=0.5, gzip", "gzip", False),
        (b"identity;q=0, gzip", "gzip", True),
        (b"gzip, *;q=0", "gzip", True),
        (b"identity;q=0", "", False),  # nothing would do: the plain answer is better than none
        (b"gzip;q=2", "", False),
        (b"gzip;q=x", "", False),
        (b", ,gzip ; q=0.3 ,", "gzip", False),
        (b"gzip," * 1000, "", False),
    ],
)
def test_the_coding_is_what_the_client_likes_best(accept: bytes, coding: str, forced: bool) -> None:
    assert choose(accept) == (coding, forced)


@given(st.binary(max_size=200))
def test_any_accept_encoding_is_understood_somehow(accept: bytes) -> None:
    coding, _ = choose(accept)
    assert coding in ("", "gzip", "zstd", "deflate")


@pytest.mark.parametrize("coding", ["gzip", "zstd", "deflate"])
@pytest.mark.parametrize("size", [2_000, 1_000_000])
def test_large_answers_are_compressed(coding: str, size: int) -> None:
    body = b"ab" * (size // 2)
    answer = post(body, ("accept-encoding", coding))
    assert answer.headers["content-encoding"] == coding
    assert answer.headers["vary"] == "accept-encoding"
    assert int(answer.headers["content-length"]) == len(answer.body) < size // 10
    assert decompress(coding, answer.body, size) == body


def test_what_is_small_is_left_alone_unless_the_client_insists() -> None:
    plain = post(b"1" * 1000, ("accept-encoding", "gzip"))
    assert "content-encoding" not in plain.headers
    assert plain.headers["vary"] == "accept-encoding"
    assert plain.body == b"1" * 1000
    insisted = post(b"1", ("accept-encoding", "gzip, identity;q=0"))
    assert gzip.decompress(insisted.body) == b"1"


@pytest.mark.parametrize("mime", ["image/png", "video/mp4", "application/zip", "application/gzip", "font/woff2"])
def test_what_is_compressed_by_its_nature_is_left_alone(mime: str) -> None:
    made = service()
    made.client.reply = lambda item: Answer(200, item.body, mime)
    assert "content-encoding" not in post(LARGE, ("accept-encoding", "gzip"), made=made).headers


def test_an_error_may_be_compressed_like_any_answer() -> None:
    made = service()
    made.client.reply = lambda item: Answer(422, b"x" * 5000)
    answer = post(b"1", ("accept-encoding", "gzip"), made=made)
    assert (answer.status, gzip.decompress(answer.body)) == (422, b"x" * 5000)


def test_a_worker_cannot_claim_a_coding() -> None:
    made = service()
    made.client.reply = lambda item: Answer(422, b"x" * 5000, headers={"Content-Encoding": "br"})
    assert post(b"1", ("accept-encoding", "gzip"), made=made).headers["content-encoding"] == "gzip"


def test_off_nothing_is_compressed() -> None:
    answer = Service().call("POST", "/inference", LARGE, headers=[("accept-encoding", "gzip")])
    assert answer.body == LARGE
    assert not {"content-encoding", "vary"} & set(answer.headers)


def test_a_large_answer_is_compressed_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    pack = compression.pack

    def spy(coding: str, body: bytes) -> bytes:
        threads.append(threading.current_thread())
        return pack(coding, body)

    monkeypatch.setattr(compression, "pack", spy)
    post(b"x" * 2000, ("accept-encoding", "gzip"))
    post(b"x" * 2_000_000, ("accept-encoding", "gzip"))
    assert [thread is threading.main_thread() for thread in threads] == [True, False]


# --- bodies of requests ---


@pytest.mark.parametrize("coding", ["gzip", "zstd", "deflate"])
@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
def test_a_compressed_body_arrives_as_what_it_was(coding: str, size: int) -> None:
    made = service()
    body = b"ab" * (size // 2) + b"c" * (size % 2)
    answer = post(PACK[coding](body), ("content-encoding", coding.upper()), made=made)
    assert (answer.status, answer.body) == (200, body)
    assert made.client.submitted[0].body == body
    assert b"content-encoding" not in dict(made.client.submitted[0].headers)
    assert made.gate.held == 0


@pytest.mark.parametrize("coding", ["gzip", "zstd", "deflate"])
def test_several_members_or_frames_are_one_body(coding: str) -> None:
    assert decompress(coding, PACK[coding](b"one, ") + PACK[coding](b"two"), 100) == b"one, two"


@given(st.sampled_from(["gzip", "zstd", "deflate"]), st.binary(max_size=5000))
def test_there_and_back(coding: str, body: bytes) -> None:
    packed = compression.pack(coding, body)
    assert decompress(coding, packed, len(body)) == body


CORRUPT = {
    "nothing": lambda whole: b"",
    "no such thing": lambda whole: b"hello, world",
    "cut short": lambda whole: whole[:-3],
    "a head alone": lambda whole: whole[:6],
    "a flipped bit": lambda whole: whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:],
    "something behind it": lambda whole: whole + b"rubbish",
    "half a second one": lambda whole: whole + whole[: len(whole) // 2],
}


@pytest.mark.parametrize("coding", ["gzip", "zstd", "deflate"])
@pytest.mark.parametrize("how", CORRUPT)
def test_what_is_corrupt_is_400(coding: str, how: str) -> None:
    options = {zstd.CompressionParameter.checksum_flag: 1}
    pack = PACK[coding] if coding != "zstd" else lambda body: zstd.compress(body, options=options)
    broken = CORRUPT[how](pack(bytes(range(256)) * 40))
    with pytest.raises(Corrupt):
        decompress(coding, broken, 1 << 20)
    made = service()
    answer = post(broken, ("content-encoding", coding), made=made)
    assert (answer.status, answer.text) == (400, "bad request: the body is not what its content-encoding says")
    assert not made.client.submitted
    assert made.gate.held == 0


@given(st.sampled_from(["gzip", "zstd", "deflate"]), st.binary(max_size=300), st.integers(0, 299))
def test_any_bytes_are_a_body_or_corrupt(coding: str, noise: bytes, at: int) -> None:
    whole = PACK[coding](b"some text " * 30)
    for data in (noise, whole[:at] + noise, whole[:at] + whole[at + 1 :]):
        try:
            assert len(decompress(coding, data, 1000)) <= 1000
        except (Corrupt, TooLarge):
            continue


@pytest.mark.parametrize("coding", ["gzip", "zstd", "deflate"])
def test_a_bomb_is_413_and_costs_no_more_than_the_limit(coding: str) -> None:
    if coding != "zstd":
        packer = zlib.compressobj(9, zlib.DEFLATED, 31 if coding == "gzip" else 15)
        bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(500)) + packer.flush()
    else:
        made = zstd.ZstdCompressor()
        bomb = b"".join(made.compress(bytes(1 << 20)) for _ in range(500)) + made.flush()
    assert len(bomb) < 1 << 20
    limit = 4 << 20
    small = service(max_request_size=limit)
    tracemalloc.start()
    try:
        answer = post(bomb, ("content-encoding", coding), made=small)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answer.status, answer.text) == (413, "request body too large")
    assert peak < 4 * limit
    assert small.gate.held == 0


@pytest.mark.parametrize("coding", ["gzip", "zstd", "deflate"])
@pytest.mark.parametrize("size", [1000, 300_000])
def test_the_limit_is_of_the_body_as_it_was(coding: str, size: int) -> None:
    body = b"x" * size
    assert post(PACK[coding](body), ("content-encoding", coding), made=service(max_request_size=size)).status == 200
    over = service(max_request_size=size - 1)
    assert post(PACK[coding](body), ("content-encoding", coding), made=over).status == 413


# --- many small ones -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "zstd", "deflate"])
def test_a_body_of_tiny_members_is_400(coding: str) -> None:
    made = service()
    answer = post(PACK[coding](b"") * 10_000, ("content-encoding", coding), made=made)
    assert (answer.status, answer.text) == (400, "bad request: the body has too many gzip members or zstd frames")
    assert made.gate.held == 0


@pytest.mark.parametrize("coding", ["gzip", "zstd", "deflate"])
def test_a_body_may_have_as_many_members_as_its_size_needs(coding: str) -> None:
    pieces = [random.Random(number).randbytes(2000) for number in range(300)]
    assert decompress(coding, b"".join(map(PACK[coding], pieces)), 1 << 20) == b"".join(pieces)
    assert decompress(coding, PACK[coding](b"") * 15 + PACK[coding](b"x"), 10) == b"x"


@pytest.mark.parametrize("coding", ["gzip", "zstd", "deflate"])
def test_what_lies_behind_a_member_is_not_copied_with_it(coding: str) -> None:
    def copied(count: int) -> int:
        work = Unpacking(coding, PACK[coding](random.Random(1).randbytes(1100)) * count, 1 << 30)
        while not work.done:
            work.step()
        return work.copied

    assert copied(400) <= 2.1 * copied(200)


@pytest.mark.parametrize("coding", ["gzip", "zstd", "deflate"])
def test_a_step_takes_in_and_gives_out_so_much_at_most(coding: str) -> None:
    for body in (bytes(8 << 20), random.Random(1).randbytes(1 << 20)):
        work = Unpacking(coding, PACK[coding](body), len(body))
        before, steps = 0, 0
        while not work.done:
            work.step()
            assert work.size - before <= unpacking.STEP_OUT
            before, steps = work.size, steps + 1
        assert work.result() == body
        assert steps >= len(body) / unpacking.STEP_OUT


@pytest.mark.parametrize("coding", ["gzip", "zstd", "deflate"])
def test_a_body_that_takes_longer_than_its_request_has_is_408(coding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0

    def go_on(self: Unpacking, most: int) -> None:
        nonlocal turns
        turns += 1  # and never done

    monkeypatch.setattr(Unpacking, "go_on", go_on)
    made = service()
    answer = post(PACK[coding](b"x"), ("content-encoding", coding), ("x-request-timeout-ms", "20"), made=made)
    assert (answer.status, answer.text) == (408, "inference timeout")
    assert turns > 1
    assert not made.client.submitted
    assert made.gate.held == 0


def test_the_time_it_takes_is_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("engine.clock.now", lambda: clock[0])
    go_on = Unpacking.go_on

    def slowly(self: Unpacking, most: int) -> None:
        clock[0] += 1.0
        go_on(self, most)

    monkeypatch.setattr(Unpacking, "go_on", slowly)
    head = heads.read("POST", "1.1", "/inference", b"", [(b"host", b"x"), (b"content-length", b"21")])
    packed = gzip.compress(b"x")

    async def receive() -> Any:
        return {"type": "http.request", "body": packed, "more_body": False}

    async def left() -> float:
        gate = Gate(FrontendSection(compression=True))
        body = Body(HttpExchange(head, "id", receive), head, gate, Terms(3.0, "gzip"), pause_s=1.0)
        assert await body.read() == b"x"
        body.release()
        assert gate.held == 0
        return body.left_s

    assert len(packed) == 21
    assert run(left()) == 2.0


def test_the_work_ends_with_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    made = service()
    headers = [("content-encoding", "gzip")]
    exchange = Exchange(made.app, "POST", "/inference", [gzip.compress(b"x")], headers=headers)
    turns = 0

    def go_on(self: Unpacking, most: int) -> None:  # never done
        nonlocal turns
        turns += 1
        if turns == 3:
            loop.call_soon_threadsafe(exchange.leave)

    async def serve() -> int:
        nonlocal loop
        loop = asyncio.get_running_loop()
        return await exchange.call()

    loop: Any = None
    monkeypatch.setattr(Unpacking, "go_on", go_on)
    assert run(serve()) == 0
    assert not made.client.submitted
    assert made.gate.held == 0


def test_a_zstd_frame_that_wants_much_memory_is_refused() -> None:
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.enable_long_distance_matching: 1}
    made = zstd.ZstdCompressor(options=options)
    greedy = made.compress(b"x" * 1000) + made.flush()  # its size is not declared, so its window is
    with pytest.raises(Corrupt):
        decompress("zstd", greedy, 1 << 20)


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, zstd", "gzip, gzip", "zip"])
def test_other_codings_are_415_and_the_answer_names_ours(coding: str) -> None:
    answer = post(b"1", ("content-encoding", coding))
    assert (answer.status, answer.headers["accept-encoding"]) == (415, "gzip, zstd, deflate")


def test_two_fields_of_codings_are_two_codings() -> None:
    assert post(gzip.compress(b"1"), ("content-encoding", "gzip"), ("content-encoding", "gzip")).status == 415


def test_off_every_coding_is_415() -> None:
    answer = Service().call("POST", "/inference", gzip.compress(b"1"), headers=[("content-encoding", "gzip")])
    assert (answer.status, answer.headers["accept-encoding"]) == (415, "identity")


def test_the_bytes_that_come_out_are_held_at_the_gate() -> None:
    tight = service(capacity_bytes=10_000)
    answer = post(gzip.compress(b"x" * 20_000), ("content-encoding", "gzip"), made=tight)
    assert answer.status == 429
    assert tight.gate.held == 0


def test_many_at_once() -> None:
    made = service()

    async def ask(number: int) -> bytes:
        body = f"{number} ".encode() * 50_000
        headers = [("content-encoding", "gzip"), ("accept-encoding", "zstd")]
        response = await Exchange(made.app, "POST", "/inference", [gzip.compress(body)], headers=headers).response()
        return decompress("zstd", response.body, len(body))

    async def all_of_them() -> list[bytes]:
        return await asyncio.gather(*map(ask, range(8)))

    assert [body.split()[0] for body in run(all_of_them())] == [str(number).encode() for number in range(8)]


# --- starting ---


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise ImportError("no module")

    monkeypatch.setattr(compression, "zstd", missing)
    with pytest.raises(StartError, match=r"-m pip install backports\.zstd"):
        compression.require()


def test_it_works_in_a_real_frontend(tmp_path: Path) -> None:
    with (
        frontend(tmp_path, compression=True) as running,
        httpx.Client(base_url=running.url, trust_env=False) as client,
    ):
        headers = {"content-encoding": "gzip", "accept-encoding": "gzip"}
        answer = client.post("/inference", content=gzip.compress(LARGE), headers=headers)
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.content == LARGE
        # A client that says nothing about codings is answered in place, by other code.
        request = client.build_request("POST", "/inference", content=LARGE)
        del request.headers["accept-encoding"]
        plain = client.send(request)
        assert plain.content == LARGE
        assert (plain.headers["vary"], plain.headers.get("content-encoding")) == ("accept-encoding", None)
