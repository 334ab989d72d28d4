"""Unix stream sockets that carry parcels: pairs in a folder of their own, moved by the test's own thread."""

from __future__ import annotations

import ctypes
import gc
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import unix
from engine.core.wire import FRAMES_MAX, Buffer
from engine.unix import JOINED, LOOKS, NAMED, PIECES, READ, Connecting, Listening, Parcel, Socket, Stream

ROOT = Path(__file__).parents[2]
CAP_S = 20.0
LARGE = 5_000_000  # bytes; far more than the system keeps for one connection
SMALL = [b"small"]

pytestmark = pytest.mark.skipif(not unix.IS_THERE, reason="this system has no such sockets")


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="sl-", dir="/tmp") as folder:  # short: a path has 107 bytes at most
        yield f"{folder}/s"


def noise(size: int, seed: int = 0) -> bytes:
    return Random(seed).randbytes(size)


def plain(frames: Sequence[Buffer]) -> list[bytes]:
    return [memoryview(frame).tobytes() for frame in frames]


# --- moving parcels ---------------------------------------------------------------------------------------------------


def tells(sock: Socket) -> bool:
    """Whether its descriptor says that there is something to do."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def heard(sock: Socket, *others: Socket, count: int = 1) -> list[Parcel]:
    """The next parcels. Everybody is looked at only when there is a reason to; without one nothing will ever come."""
    found: list[Parcel] = []
    while len(found) < count:
        due = [one for one in (sock, *others) if one.has_parcels or tells(one)]
        assert due, f"{len(found)} of {count} parcels have come, and no descriptor tells of more"
        for one in due:
            parcel = one.recv()
            if one is sock and parcel is not None:
                found.append(parcel)
    return found


def words(sock: Socket, *others: Socket, count: int = 1) -> list[list[bytes]]:
    return [plain(frames) for frames, _ in heard(sock, *others, count=count)]


def settle(*socks: Socket) -> list[Parcel]:
    """Look until there is no reason to; what came meanwhile."""
    found: list[Parcel] = []
    while due := [one for one in socks if one.has_parcels or tells(one)]:
        found += [parcel for one in due if (parcel := one.recv()) is not None]
    return found


def stuff(sock: Socket, to: bytes | None = None) -> list[bytes]:
    """Send until the other end takes no more, and something is kept. What was sent."""
    sent: list[bytes] = []
    while not sock.has_unsent:
        sent.append(noise(10_000, len(sent)))
        assert sock.send([sent[-1]], to)
    return sent


def named(sock: Listening, client: Socket) -> bytes:
    """What a client that has just come is called."""
    assert client.send(SMALL)
    ((name, said), _) = heard(sock)[0]
    assert said == SMALL[0]
    return bytes(name)


@contextmanager
def pair(path: str, largest: int = -1) -> Iterator[tuple[Listening, Connecting]]:
    with closing(Listening(path, largest)) as one, closing(Connecting(path)) as other:
        assert other.is_connected
        yield one, other


@contextmanager
def raw(path: str) -> Iterator[socket.socket]:
    """A peer that may say anything."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.connect(path)
        made.settimeout(CAP_S)
        yield made


def packed(*frames: bytes) -> bytes:
    return struct.pack(f"<I{len(frames)}Q", len(frames), *map(len, frames)) + b"".join(frames)


def is_cut(peer: socket.socket) -> bool:
    """Whether the other end has closed it."""
    try:
        return not peer.recv(1)
    except ConnectionResetError:  # bytes of ours were left unread
        return True


# --- one connection, and bytes as they are cut ------------------------------------------------------------------------


def read_on(stream: Stream, found: deque[Parcel]) -> None:
    while stream.read(found):
        pass


def on_the_wire(parcels: Sequence[Sequence[Buffer]]) -> bytes:
    """The bytes that are sent for these."""
    ours, theirs = socket.socketpair()
    got = bytearray()
    with ours, theirs:
        stream = Stream(ours, -1)
        for frames in parcels:
            stream.send(frames)
        theirs.setblocking(False)
        done = False
        while not done:
            done = stream.go_on()
            try:
                while data := theirs.recv(1 << 20):
                    got += data
            except BlockingIOError:
                pass
    return bytes(got)


def fed(data: bytes, pieces: Iterator[int], *, name: bytes = b"") -> list[Parcel]:
    """What a stream makes of bytes that come in these pieces, and then in large ones."""
    ours, theirs = socket.socketpair()
    found: deque[Parcel] = deque()
    with ours, theirs:
        ours.setblocking(False)
        stream = Stream(theirs, -1, name=name)
        left = memoryview(data)
        while left:
            piece = left[: next(pieces, READ)]
            left = left[ours.send(piece) :]
            read_on(stream, found)
        assert all(by is stream for _, by in found)
    return list(found)


def two_dimensional(data: bytes) -> memoryview:
    return memoryview(data).cast("B", (2, len(data) // 2)) if data and not len(data) % 2 else memoryview(data)


def of_words(data: bytes) -> memoryview:
    return memoryview(data).cast("H") if not len(data) % 2 else memoryview(data)


KINDS: list[Callable[[bytes], Buffer]] = [bytes, bytearray, memoryview, of_words, two_dimensional]
SIZES = [0, 1, 2, 7, 8, 100, JOINED - 8, JOINED, JOINED + 2, READ - 1, READ, READ + 1, 300_000]

some_frames = st.lists(st.tuples(st.sampled_from(SIZES), st.sampled_from(KINDS)), min_size=1, max_size=6)
some_pieces = st.lists(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 12, 1000, READ - 1, READ, READ + 1]), max_size=60)


@settings(max_examples=60)
@given(st.lists(some_frames, min_size=1, max_size=3), some_pieces, st.sampled_from([b"", NAMED + b"name"]))
def test_frames_come_out_equal_and_in_order_however_their_bytes_are_cut(
    shapes: list[list[tuple[int, Callable[[bytes], Buffer]]]], pieces: list[int], name: bytes
) -> None:
    parcels = [[kind(noise(size, at)) for at, (size, kind) in enumerate(shape)] for shape in shapes]
    found = fed(on_the_wire(parcels), iter(pieces), name=name)
    first = [name] if name else []
    assert [plain(frames) for frames, _ in found] == [first + plain(frames) for frames in parcels]


@given(st.lists(st.lists(st.binary(max_size=20), min_size=1, max_size=20), min_size=1, max_size=5))
def test_bytes_that_come_one_by_one(parcels: list[list[bytes]]) -> None:
    data = on_the_wire(parcels)
    assert [frames for frames, _ in fed(data, iter([1] * len(data)))] == parcels


@pytest.mark.parametrize("size", [READ - 1, READ, READ + 1])
def test_a_frame_about_as_large_as_a_read_that_ends_byte_by_byte(size: int) -> None:
    frame, after = noise(size), noise(9)
    pieces = [1] * 40 + [size - 60] + [1] * 80
    assert [plain(frames) for frames, _ in fed(packed(frame, after), iter(pieces))] == [[frame, after]]


@pytest.mark.parametrize("cut", range(len(packed(b"ab", b"", b"c")) + 1))
def test_two_parcels_in_two_pieces(cut: int) -> None:
    frames = [b"ab", b"", b"c"]
    assert [found for found, _ in fed(packed(*frames) * 2, iter([cut + 1]))] == [frames, frames]


@pytest.mark.parametrize("count", [1, 2, PIECES - 1, PIECES, PIECES + 1, 2000])
@pytest.mark.parametrize("size", [0, 1, 300])
def test_parcels_of_many_frames(path: str, count: int, size: int) -> None:
    frames = [noise(size, seed) for seed in range(count)]
    with pair(path) as (one, other):
        for _ in range(3):
            assert other.send(frames)
        assert words(one, other, count=3) == [frames] * 3


@pytest.mark.parametrize("size", [*SIZES, LARGE])
def test_a_frame_of_any_size_alone_and_among_others(path: str, size: int) -> None:
    frame = noise(size)
    with pair(path) as (one, other):
        for frames in ([frame], [frame, b"", frame], [b"x", frame]):
            assert other.send(frames)
            assert words(one, other) == [frames]


def test_large_frames_are_views_that_cannot_be_written_to_and_small_ones_bytes(path: str) -> None:
    with pair(path) as (one, other):
        assert other.send([noise(size) for size in (0, 1, READ, READ + 1, 300_000, READ)])
        ((frames, _),) = heard(one, other)
    assert [type(frame) for frame in frames] == [bytes, bytes, bytes, memoryview, memoryview, bytes]
    assert all(frame.readonly for frame in frames if isinstance(frame, memoryview))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    "frame",
    [
        memoryview((ctypes.c_int * 3)(1, 2, 3)),  # its format names the order of bytes
        memoryview((ctypes.c_int.__ctype_be__ * 3)(1, 2, 3)),
        memoryview(ctypes.c_int(5)),  # of no dimension
        memoryview(bytes(24)).cast("d"),
        memoryview(bytes(24)).cast("d", (3, 1)),
        memoryview((ctypes.c_int * 0 * 3)()),  # a zero in its shape, and not at the front
        memoryview(b""),
        bytearray(),
    ],
    ids=["little", "big", "scalar", "doubles", "2-D", "3x0", "empty", "empty bytearray"],
)
def test_a_frame_of_any_items(path: str, frame: Buffer, several: bool) -> None:
    frames: list[Buffer] = [frame, b"x", frame] if several else [frame]
    with pair(path) as (one, other):
        assert other.send(frames)
        assert words(one) == [plain(frames)]


def test_what_does_not_lie_in_one_piece_is_refused_and_nothing_of_it_sent(path: str) -> None:
    with pair(path) as (one, other):
        apart = memoryview(b"abcd")[::2]
        several: list[list[Buffer]] = [[apart], [b"x", apart]]
        for frames in several:
            with pytest.raises((TypeError, BufferError)):
                other.send(frames)
        assert other.send(SMALL)
        assert words(one) == [SMALL]


def test_parcels_that_were_read_together_are_all_found(path: str) -> None:
    with pair(path) as (one, other):
        assert one.recv() is None  # who has come
        for number in range(3):
            assert other.send([b"%d" % number])
        found = [one.recv()]
        while one.has_parcels:
            assert not tells(one)  # why there is has_parcels
            found.append(one.recv())
        assert [parcel and parcel[0] for parcel in found] == [[b"0"], [b"1"], [b"2"]]
        assert one.recv() is None
        assert not one.has_parcels


def test_the_descriptor_stays_the_same_and_is_silent_when_nothing_is_to_do(path: str) -> None:
    with closing(Listening(path)) as one:
        before = one.fileno()
        assert not tells(one)
        with closing(Connecting(path)) as other:
            assert tells(one)
            assert one.recv() is None
            assert not tells(one)
            assert other.send(SMALL)
            assert tells(one)
            assert tells(one)  # level-triggered
            assert words(one) == [SMALL]
            assert not tells(one)
            assert not tells(other)
        assert tells(one)
        assert one.recv() is None
        assert not tells(one)
        assert one.fileno() == before


# --- what is not taken at once ----------------------------------------------------------------------------------------


def test_what_a_connecting_one_keeps_goes_on_by_looking_in_order_with_what_follows(path: str) -> None:
    with pair(path) as (one, other):
        sent = [[frame] for frame in stuff(other)]
        for frames in ([b"small"], [noise(LARGE), b""], [b""], [b"x"] * 2000, [noise(100, at) for at in range(400)]):
            assert other.send(frames)
            sent.append(frames)
        assert not tells(other)  # nobody takes it
        assert words(one, other, count=len(sent)) == sent
        assert not other.has_unsent
        assert not tells(other)


def test_what_a_listening_one_keeps_goes_on_by_looking_in_order_with_what_follows(path: str) -> None:
    with closing(Listening(path, is_named=True)) as one, closing(Connecting(path)) as other:
        name = named(one, other)
        sent = [[frame] for frame in stuff(one, name)]
        for frames in ([b"small"], [noise(LARGE), b""], [b"x"] * 2000):
            assert one.send(frames, name)
            sent.append(frames)
        assert not tells(one)
        assert words(other, one, count=len(sent)) == sent
        assert not one.has_unsent
        assert not tells(one)


@pytest.mark.parametrize(
    "frames", [[b"small"], [b"small", b"another"], [noise(JOINED + 1)]], ids=["one", "two", "large"]
)
def test_what_follows_does_not_overtake_what_is_kept_although_there_is_room(path: str, frames: list[bytes]) -> None:
    with pair(path) as (one, other):
        sent = [*([frame] for frame in stuff(other)), frames]
        found = [plain(frames) for frames, _ in settle(one)]
        assert other.send(frames)
        assert found + words(one, other, count=len(sent) - len(found)) == sent


def test_more_pieces_are_kept_than_go_at_once(path: str) -> None:
    with pair(path) as (one, other):
        sent = [[frame] for frame in stuff(other)]
        for _ in range(5):
            sent.append([noise(100, seed) for seed in range(PIECES - 1)])
            assert other.send(sent[-1])
        assert words(one, other, count=len(sent)) == sent


def test_both_ends_keep_much_for_each_other(path: str) -> None:
    with closing(Listening(path, is_named=True)) as one, closing(Connecting(path)) as other:
        name = named(one, other)
        data = noise(LARGE)
        assert one.send([data], name)
        assert other.send([data])
        found = settle(one, other)
        assert sorted(plain(frames) for frames, _ in found) == sorted([[data], [name, data]])


@settings(max_examples=15)
@given(st.lists(st.lists(st.sampled_from([0, 0, 1, 300, 40_000]), min_size=1, max_size=700), min_size=2, max_size=5))
def test_pieces_that_are_kept_keep_their_order(shapes: list[list[int]]) -> None:
    parcels = [[noise(size, at) for at, size in enumerate(shape)] for shape in shapes]
    ours, theirs = socket.socketpair()
    found: deque[Parcel] = deque()
    with ours, theirs:
        writes, reads = Stream(ours, -1), Stream(theirs, -1)
        while not writes.unsent:
            writes.send([bytes(JOINED)])
        for frames in parcels:
            writes.send(frames)
        done = False
        while not done:
            read_on(reads, found)
            done = writes.go_on()
        read_on(reads, found)
    assert [frames for frames, _ in found if frames != [bytes(JOINED)]] == parcels


def test_go_on_says_whether_something_is_left(path: str) -> None:
    with pair(path) as (one, other):
        assert other.go_on()
        sent = stuff(other)
        assert not other.go_on()
        before = time.thread_time()
        assert not other.go_on(0.05)
        assert time.thread_time() - before < 0.03  # it waited, and did not ask again and again
        found = [frames for frames, _ in settle(one)]  # who takes all that has come
        assert other.go_on()
        assert not other.has_unsent
        assert not tells(other)
        assert found + words(one, count=len(sent) - len(found)) == [[frame] for frame in sent]


@contextmanager
def reading(peer: socket.socket) -> Iterator[bytearray]:
    """A peer that takes all there is, until the end."""
    got = bytearray()

    def take() -> None:
        while data := peer.recv(1 << 20):
            got.extend(data)

    thread = threading.Thread(target=take)
    thread.start()
    try:
        yield got
    finally:
        thread.join(CAP_S)
        assert not thread.is_alive()


@pytest.mark.parametrize("is_closed_at_once", [False, True])
def test_what_is_kept_goes_while_somebody_takes_it(path: str, is_closed_at_once: bool) -> None:
    data = noise(LARGE)
    with closing(Listening(path)) as one, raw(path) as peer:
        assert one.send([data, SMALL[0]])
        assert one.has_unsent
        with reading(peer) as got:
            if not is_closed_at_once:
                assert one.go_on(CAP_S)
                assert not one.has_unsent
            one.close(linger=int(CAP_S * 1000))
        assert bytes(got) == packed(data, SMALL[0])


def test_close_waits_for_no_one_who_does_not_take_it(path: str) -> None:
    with pair(path) as (one, other):
        sent = stuff(other)
        other.close(linger=1)
        found = [frames for frames, _ in settle(one)]
        assert 0 < len(found) < len(sent)
        assert found == [[frame] for frame in sent[: len(found)]]
        assert not one.streams


def test_without_linger_what_is_kept_is_given_up(path: str) -> None:
    with pair(path) as (one, other):
        sent = stuff(other)
        other.close()
        assert len(settle(one)) < len(sent)


def test_a_reader_that_is_stopped_costs_the_others_nothing(path: str) -> None:
    with closing(Listening(path, is_named=True)) as one, ExitStack() as stack:
        stopped, *others = [stack.enter_context(closing(Connecting(path))) for _ in range(3)]
        stuck = named(one, stopped)
        names = [named(one, other) for other in others]
        stuff(one, stuck)
        for name, other in zip(names, others, strict=True):
            data = noise(LARGE)
            assert one.send([data], name)
            assert words(other, one) == [[data]]
            assert other.send(SMALL)
            assert words(one) == [[name, *SMALL]]
        assert one.has_unsent
        assert not tells(one)


def test_a_reader_that_is_stopped_does_not_hold_up_what_is_kept_for_others(path: str) -> None:
    with closing(Listening(path, is_named=True)) as one, ExitStack() as stack:
        stopped, other = [stack.enter_context(closing(Connecting(path))) for _ in range(2)]
        stuff(one, named(one, stopped))
        name = named(one, other)
        sent = [[noise(10_000, seed)] for seed in range(LARGE // 10_000)]
        for frames in sent:
            assert one.send(frames, name)
        found: list[list[Buffer]] = []
        while now := [frames for frames, _ in settle(other)]:
            found += now
            assert not one.go_on()
        assert found == sent
        for frames in sent:
            assert one.send(frames, name)
        settle(other)
        one.close(linger=1)
        assert settle(other)


# --- peers that come and go -------------------------------------------------------------------------------------------


def test_peers_have_names_that_are_never_used_twice(path: str) -> None:
    with closing(Listening(path, is_named=True)) as one, closing(Connecting(path)) as stays:
        names = [named(one, stays)]
        for _ in range(5):
            with closing(Connecting(path)) as goes:
                names.append(named(one, goes))
            assert settle(one) == []
        assert len({*names}) == len(names)
        assert all(name.startswith(NAMED) for name in names)
        assert named(one, stays) == names[0]
        assert [one.send([b"answer"], name) for name in names] == [True, *[False] * 5]
        assert words(stays) == [[b"answer"]]


def test_nothing_is_kept_of_peers_that_have_gone(path: str) -> None:
    with closing(Listening(path, is_named=True)) as one:
        for _ in range(3):
            with closing(Connecting(path)) as goes:
                stuff(one, named(one, goes))
            settle(one)
        del goes
        assert not one.has_unsent
        assert [made for made in gc.get_objects() if type(made) is Stream] == []


def test_an_answer_goes_to_whom_it_is_for(path: str) -> None:
    with closing(Listening(path, is_named=True)) as one, ExitStack() as stack:
        others = [stack.enter_context(closing(Connecting(path))) for _ in range(4)]
        names = [named(one, other) for other in others]
        for name in reversed(names):
            assert one.send([name, b"answer"], name)
        assert [words(other) for other in others] == [[[name, b"answer"]] for name in names]
        assert not one.send([b"answer"], NAMED + b"nobody")
        assert not one.send([b"answer"], b"")


def test_an_answer_to_a_peer_that_has_just_gone_is_not_sent(path: str) -> None:
    with closing(Listening(path, is_named=True)) as one, closing(Connecting(path)) as other:
        name = named(one, other)
        other.close()
        assert not one.send([b"answer"], name)
        assert not one.send([b"answer"], name)
        assert not one.streams
        assert not tells(one)


def test_a_parcel_says_by_which_connection_and_process_it_came(path: str) -> None:
    with closing(Listening(path)) as one, closing(Connecting(path)) as other, closing(Connecting(path)) as third:
        assert other.send([b"1"])
        assert third.send([b"2"])
        found = {bytes(frames[0]): stream for frames, stream in heard(one, count=2)}
        assert found[b"1"] is not found[b"2"]
        assert {stream.pid for stream in found.values()} == {os.getpid()}


def test_a_second_one_is_let_in_while_the_first_never_stops(path: str) -> None:
    with pair(path) as (one, first):
        assert first.send(SMALL)
        assert words(one) == [SMALL]
        with closing(Connecting(path)) as second:
            assert second.send([b"second"])
            found: list[bytes] = []
            for _ in range(LOOKS + 3):
                assert first.send(SMALL)
                parcel = one.recv()
                assert parcel is not None
                found.append(bytes(parcel[0][0]))
            assert b"second" in found


def test_what_a_peer_said_before_it_went_is_heard(path: str) -> None:
    with closing(Listening(path)) as one:
        with closing(Connecting(path)) as other:
            for number in range(3):
                assert other.send([b"%d" % number])
        assert words(one, count=3) == [[b"0"], [b"1"], [b"2"]]
        assert settle(one) == []
        assert not one.streams


@pytest.mark.parametrize("is_kept", [False, True])
def test_what_a_peer_said_before_it_went_is_heard_although_it_takes_no_more(path: str, is_kept: bool) -> None:
    with closing(Listening(path, is_named=True)) as one, closing(Connecting(path)) as other:
        name = named(one, other)
        if is_kept:
            stuff(other)
        *answers, _ = stuff(one, name)  # but for the last one, which did not go as a whole
        one.close()
        if is_kept:
            assert tells(other)
        else:
            assert not other.send(SMALL)
            assert other.has_parcels  # the descriptor is silent by now
        assert words(other, count=len(answers)) == [[answer] for answer in answers]
        assert settle(other) == []
        assert not other.is_connected


def test_the_same_at_the_other_end(path: str) -> None:
    with closing(Listening(path, is_named=True)) as one, closing(Connecting(path)) as other:
        name = named(one, other)
        stuff(one, name)
        *last, _ = stuff(other)
        other.close()
        assert words(one, count=len(last)) == [[name, word] for word in last]
        assert not one.streams
        assert not one.has_unsent


def test_a_send_to_a_dead_end_is_not_sent_and_the_next_one_connects_anew(path: str) -> None:
    with pair(path) as (one, other):
        assert other.send(SMALL)
        assert words(one) == [SMALL]
        one.close()
        with closing(Listening(path)) as new:
            assert not other.send([b"lost"])
            assert not other.is_connected
            assert other.send([b"new"])
            assert words(new) == [[b"new"]]


def test_one_that_has_seen_the_end_connects_anew_as_it_sends(path: str) -> None:
    with pair(path) as (one, other):
        before = other.fileno()
        one.close()
        assert settle(other) == []
        assert not other.is_connected
        assert not other.send(SMALL)
        with closing(Listening(path)) as new:
            assert other.send(SMALL)
            assert words(new) == [SMALL]
            assert other.fileno() == before


def test_what_was_kept_for_a_dead_end_is_not_for_the_next_one(path: str) -> None:
    with pair(path) as (one, other):
        stuff(other)
        one.close()
        with closing(Listening(path)) as new:
            assert settle(other) == []
            assert not other.has_unsent
            assert other.send(SMALL)
            assert words(new) == [SMALL]
            assert settle(new) == []


def test_one_that_is_not_lasting_does_not_connect_anew(path: str) -> None:
    with closing(Listening(path)) as one, closing(Connecting(path, is_lasting=False)) as other:
        assert other.send(SMALL)
        one.close()
        with closing(Listening(path)) as new:
            assert not other.send(SMALL)
            assert not other.send(SMALL)
            assert other.recv() is None
            assert not tells(new)


def test_connecting_where_nobody_has_been(path: str) -> None:
    with closing(Connecting(path)) as other:
        assert not other.is_connected
        assert not other.send(SMALL)
        assert other.recv() is None
        assert other.go_on()
        with closing(Listening(path)) as one:
            assert other.send(SMALL)
            assert words(one) == [SMALL]


def test_connecting_where_somebody_was_killed(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as killed:
        killed.bind(path)
    with closing(Connecting(path)) as other:
        assert os.path.exists(path)
        assert not other.is_connected
        assert not other.send(SMALL)
        with closing(Listening(path)) as one:
            assert other.send(SMALL)
            assert words(one) == [SMALL]


def test_a_queue_that_is_full_is_a_connection_that_is_not_made_yet(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix, "WAITING", 1)
    with closing(Listening(path)) as one, ExitStack() as stack:
        others = [stack.enter_context(closing(Connecting(path))) for _ in range(4)]
        late = [other for other in others if not other.is_connected]
        assert 0 < len(late) < len(others)
        assert not late[0].send(SMALL)
        settle(one)
        assert late[0].send(SMALL)
        assert words(one) == [SMALL]


# --- lanes ------------------------------------------------------------------------------------------------------------


def test_a_single_one_takes_one_connection_and_removes_its_file(path: str) -> None:
    with closing(Listening(path, is_single=True)) as one:
        assert not one.send([b"nobody"])
        assert os.path.exists(path)
        with closing(Connecting(path, is_lasting=False)) as first, raw(path) as second:
            assert one.send([b"batch"])  # which looks who has come
            assert not os.path.exists(path)
            assert is_cut(second)
            assert words(first) == [[b"batch"]]
            assert len(one.streams) == 1
        assert not one.send([b"gone"])
        assert not one.send([b"gone"])
        assert settle(one) == []
        assert not one.send([b"gone"])


def test_a_single_one_that_nobody_came_to_leaves_no_file(path: str) -> None:
    Listening(path, is_single=True).close()
    assert os.listdir(os.path.dirname(path)) == []


STRANGER = """
import socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
sys.stdin.readline()
sock.connect(sys.argv[1])
print("connected", flush=True)
try:
    print(sock.recv(100).hex())
except ConnectionResetError:
    print()
"""


@contextmanager
def stranger(path: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, that connects when it is told to, and prints what it got."""
    command = [sys.executable, "-S", "-E", "-c", STRANGER, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "connected\n"


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.read().strip()


def test_one_that_is_for_a_process_refuses_all_others(path: str) -> None:
    with closing(Listening(path, is_single=True, only=os.getpid())) as one, stranger(path) as process:
        tell(process)
        with closing(Connecting(path)) as right:
            assert one.send([b"batch"])
            assert said(process) == ""
            assert words(right) == [[b"batch"]]


def test_one_that_is_for_a_process_takes_it(path: str) -> None:
    with stranger(path) as process:
        only = process.pid
        with closing(Listening(path, is_single=True, only=only)) as one, closing(Connecting(path)) as wrong:
            assert not one.send([b"batch"])
            assert not wrong.send(SMALL)
            tell(process)
            assert one.send([b"batch"])
            assert [stream.pid for stream in one.streams.values()] == [only]
            assert said(process) == packed(b"batch").hex()


# --- peers that are broken or hostile ---------------------------------------------------------------------------------

LARGEST = 1_000_000

GARBAGE = {
    "no frames": struct.pack("<IQ", 0, 0),
    "too many frames": struct.pack("<IQ", FRAMES_MAX + 2, 1),
    "as many frames as can be said": b"\xff" * 100,
    "a frame that is too large": struct.pack("<IQ", 1, LARGEST + 1),
    "a frame of 16 EiB": struct.pack("<IQ", 1, (1 << 64) - 1),
    "a frame that is too large, behind others": struct.pack("<IQQQ", 3, 1, LARGEST + 1, 1) + b"x",
    "text": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "behind a good one": packed(b"good") + b"\0" * 8,
}


@pytest.mark.parametrize("is_in_pieces", [False, True])
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_bytes_that_no_parcel_is_made_of_cut_that_connection_alone(
    path: str, garbage: bytes, is_in_pieces: bool
) -> None:
    with pair(path, LARGEST) as (one, other), raw(path) as peer:
        assert other.send(SMALL)
        assert words(one) == [SMALL]
        found: list[Parcel] = []
        for at in range(len(garbage)) if is_in_pieces else [0]:
            try:
                peer.sendall(garbage[at : at + 1] if is_in_pieces else garbage)
            except BrokenPipeError:
                break  # it is cut before the last byte
            found += settle(one)
        assert is_cut(peer)
        assert [plain(frames) for frames, _ in found] == ([[b"good"]] if garbage.startswith(packed(b"good")) else [])
        assert len(one.streams) == 1
        assert other.send(SMALL)
        assert words(one) == [SMALL]


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 1000))
def test_any_bytes_are_parcels_or_an_end(data: bytes, largest: int) -> None:
    ours, theirs = socket.socketpair()
    found: deque[Parcel] = deque()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        stream = Stream(theirs, largest)
        with pytest.raises(EOFError):
            read_on(stream, found)
    assert data.startswith(b"".join(packed(*plain(frames)) for frames, _ in found))


@pytest.mark.parametrize(
    "data",
    [
        packed(*[b""] * (FRAMES_MAX + 1)),
        packed(b"x" * LARGEST),
        packed(b"x" * LARGEST, b"", b"x" * LARGEST),
    ],
    ids=["frames", "bytes", "bytes of each"],
)
def test_as_much_as_is_allowed_is_taken(path: str, data: bytes) -> None:
    with pair(path, LARGEST) as (one, _), raw(path) as peer:
        left = memoryview(data)
        found: list[Parcel] = []
        while left:
            left = left[peer.send(left[:READ]) :]
            found += settle(one)
        assert [packed(*plain(frames)) == data for frames, _ in found] == [True]


MB = 1 << 20


@pytest.mark.parametrize(
    ("data", "most"),
    [
        (struct.pack("<IQ", 1, (1 << 64) - 1), MB),
        (struct.pack("<IQ", (1 << 32) - 1, 1), MB),
        (struct.pack("<IQ", FRAMES_MAX + 1, 1), MB),
        (struct.pack(f"<I{FRAMES_MAX + 1}Q", FRAMES_MAX + 1, *[LARGEST] * (FRAMES_MAX + 1)), LARGEST + 8 * MB),
    ],
    ids=["a frame of 4 GiB", "frames without end", "a head that does not come", "64 GiB in all"],
)
def test_what_is_only_claimed_takes_no_memory(path: str, data: bytes, most: int) -> None:
    with closing(Listening(path, LARGEST)) as one, raw(path) as peer:
        settle(one)
        tracemalloc.start()
        try:
            for at in range(0, len(data), READ):
                peer.sendall(data[at : at + READ])
                assert settle(one) == []
            assert tracemalloc.get_traced_memory()[1] < most
        finally:
            tracemalloc.stop()


def test_memory_that_there_is_not_cuts_that_connection_alone(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(size: int) -> bytearray:
        raise MemoryError

    with pair(path) as (one, other), raw(path) as peer:
        settle(one)
        monkeypatch.setattr(unix, "bytearray", none_left, raising=False)
        peer.sendall(struct.pack("<IQ", 1, LARGE))
        assert settle(one) == []
        assert is_cut(peer)
        assert other.send(SMALL)
        assert words(one) == [SMALL]


HALVES = packed(b"whole") + packed(b"ab", b"c")


@pytest.mark.parametrize("cut", range(len(packed(b"whole")), len(HALVES)))
def test_a_parcel_whose_sender_died_in_its_midst_is_not_delivered(path: str, cut: int) -> None:
    with pair(path) as (one, other):
        with raw(path) as peer:
            peer.sendall(HALVES[:cut])
        assert [frames for frames, _ in settle(one)] == [[b"whole"]]
        assert len(one.streams) == 1
        assert other.send(SMALL)
        assert words(one) == [SMALL]


@pytest.mark.parametrize("size", [8, 100, READ, READ + 8, 2 * READ + 1, LARGEST + 7])
def test_the_same_within_a_large_frame(path: str, size: int) -> None:
    with closing(Listening(path)) as one:
        with raw(path) as peer:
            left = memoryview(packed(bytes(LARGEST)))[:size]
            while left:
                left = left[peer.send(left[:READ]) :]
                assert settle(one) == []
        assert settle(one) == []
        assert not one.streams


def test_the_end_of_one_that_kept_half_a_parcel_is_no_parcel_either(path: str) -> None:
    with pair(path) as (one, other):
        assert other.send([noise(LARGE)])
        assert settle(one) == []
        other.close()
        assert settle(one) == []
        assert not one.streams


# --- descriptors, files -----------------------------------------------------------------------------------------------

FULL = """
import errno, os, resource, select, socket, struct, sys
from contextlib import closing
from engine import unix

path = sys.argv[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))


def fill():
    held = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError as error:
        assert error.errno == errno.EMFILE
    return held


def empty(held):
    while held:
        os.close(held.pop())


def looks(one):
    # until it has nothing more to do
    poll = select.poll()
    poll.register(one.fileno(), select.POLLIN)
    count = 0
    while poll.poll(0):
        assert one.recv() is None
        count += 1
        assert count < 20, "it spins"
    return count


def sockets(count):
    return [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(count)]


def served(one, other):
    assert other.send([b"x"])
    frames, _ = one.recv() or one.recv()  # the first look finds who has come
    assert frames == [b"x"], frames
"""


def alone(path: str, code: str) -> None:
    """In a process of its own, with few descriptors."""
    done = subprocess.run([sys.executable, "-c", FULL + code, path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_descriptors_newcomers_wait_with_what_they_sent_and_the_others_go_on(path: str) -> None:
    code = """
with closing(unix.Listening(path)) as one, closing(unix.Connecting(path)) as other:
    served(one, other)
    early = sockets(3)
    held = fill()
    for number, sock in enumerate(early):
        sock.connect(path)
        sock.sendall(struct.pack("<IQ", 1, 1) + b"%d" % number)
    for _ in range(3):
        looks(one)
        assert len(one.streams) == 1
        served(one, other)
        one.listen_again()
    looks(one)
    empty(held)
    one.listen_again()
    found = []
    while len(found) < 3:
        if (parcel := one.recv()) is not None:
            found.append(parcel[0])
    assert sorted(found) == [[b"0"], [b"1"], [b"2"]]
    served(one, other)
    held = fill()
    os.close(held.pop())
    late = sockets(1)
    late[0].connect(path)
    looks(one)
    assert len(one.streams) == 4
    early[0].close()  # a connection ends, and its descriptor serves another one
    looks(one)
    late[0].sendall(struct.pack("<IQ", 1, 4) + b"late")
    assert (one.recv() or one.recv())[0] == [b"late"]
    empty(held)
    for sock in (*early, *late):
        sock.close()
"""
    alone(path, code)


def test_without_descriptors_there_is_no_connection_to_send_by(path: str) -> None:
    code = """
with closing(unix.Connecting(path)) as other, closing(unix.Listening(path)) as one:
    held = fill()
    assert not other.send([b"x"])
    empty(held)
    served(one, other)
"""
    alone(path, code)


def test_a_single_one_takes_its_connection_when_there_is_a_descriptor_again(path: str) -> None:
    code = """
with closing(unix.Listening(path, is_single=True)) as one:
    (client,) = sockets(1)
    held = fill()
    client.connect(path)
    assert not one.send([b"x"])
    empty(held)
    assert one.send([b"x"])
    assert client.recv(100)[12:] == b"x"
    client.close()
"""
    alone(path, code)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_nothing_is_left_behind_and_closing_twice_is_closing(path: str) -> None:
    before = descriptors()
    one = Listening(path, is_named=True)
    others = [Connecting(path) for _ in range(5)]
    names = [named(one, other) for other in others]
    stuff(one, names[0])
    stuff(others[1])
    others[2].close()
    settle(one)
    for sock in (one, *others, one, *others):
        sock.close()
        sock.close(linger=1)
    assert descriptors() == before
    assert os.listdir(os.path.dirname(path)) == []


def test_connections_that_were_never_looked_at_are_closed_too(path: str) -> None:
    before = descriptors()
    one = Listening(path)
    with raw(path) as peer:
        one.close()
        assert is_cut(peer)
    assert descriptors() == before


@pytest.mark.parametrize("is_single", [False, True])
@pytest.mark.parametrize("where", ["folder", "none/s", "file/s", "x" * 200])
def test_where_it_cannot_listen_it_says_so_and_leaves_nothing(path: str, where: str, is_single: bool) -> None:
    folder = Path(path).parent
    (folder / "folder").mkdir()
    (folder / "file").touch()
    before = descriptors()
    with pytest.raises(OSError):
        Listening(str(folder / where), is_single=is_single)
    assert descriptors() == before
    assert sorted(os.listdir(folder)) == ["file", "folder"]


def test_a_file_that_was_left_there_is_replaced(path: str) -> None:
    Path(path).write_text("left behind")
    with pair(path) as (one, other):
        assert other.send(SMALL)
        assert words(one) == [SMALL]
    assert not os.path.exists(path)
