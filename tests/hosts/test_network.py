"""What happens to networks between hosts, and that nobody who asks notices: the quick rows of ``scripts/network``.

Four hosts are namespaces on this machine, so it takes root; where there can be none these tests are skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from hosts import lab, switch
from hosts.rows import ROWS, Row, run
from hosts.scene import Scene, scene

pytestmark = pytest.mark.unmeasured

TIMEOUT_S = 15.0  # of requests: who is cut off has so long
FAULT_S = 3.2  # longer than a vanished host goes unnoticed, by enough
RATE = 40.0
QUICK = ("cut", "kill", "reset", "front", "hold")

needs_hosts = pytest.mark.skipif(bool(lab.impossible()), reason=f"no hosts: {lab.impossible()}")


@pytest.fixture(scope="module")
def hosts() -> Iterator[Scene]:
    with scene(timeout=TIMEOUT_S) as made:
        yield made


@needs_hosts
@pytest.mark.parametrize("row", [row for row in ROWS if row.id in QUICK], ids=lambda row: row.id)
def test_nothing_is_lost_wrong_or_late(hosts: Scene, row: Row) -> None:
    seen = run(row, hosts, rate=RATE, seconds=FAULT_S, seed=1, timeout_s=TIMEOUT_S)
    assert seen.problems == []
    if row.id != "kill":
        assert seen.deaths == 0  # a connection that is lost is none
    hosts.wait_ready(20.0)


def test_a_forged_reset_is_what_its_sender_would_have_sent() -> None:
    ip = bytes.fromhex("4500003412344000400600000a6300010a630002")
    tcp = struct.pack("!HHIIBBHHH", 7000, 41000, 1000, 2000, 0x80, 0x18, 500, 0, 0) + bytes(12)
    frame = bytes(12) + b"\x08\x00" + ip + tcp + b"data"
    frame = frame[:16] + struct.pack("!H", len(frame) - 14) + frame[18:]
    part = switch.segment(frame)
    assert part is not None
    assert (part.next, part.flags & switch.RST) == (1004, 0)
    forged = switch.reset(frame, part.next)
    told = switch.segment(forged)
    assert told is not None
    assert (told.way, told.flags) == (part.way, switch.RST | switch.ACK)
    assert struct.unpack_from("!II", forged, 38) == (1004, 2000)
    words = struct.unpack("!10H", forged[14:34])
    assert sum(words) % 0xFFFF == 0
    pseudo = forged[26:34] + struct.pack("!BBH", 0, 6, 20) + forged[34:]
    assert sum(struct.unpack("!16H", pseudo)) % 0xFFFF == 0


def test_what_is_no_tcp_is_left_alone() -> None:
    assert switch.segment(bytes(12) + b"\x08\x06" + bytes(60)) is None
    assert switch.segment(b"\0" * 20) is None
