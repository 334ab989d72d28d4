"""A hostile peer of a broker: says structured extremes on all its sockets, as fast as they are taken.

Run as a process of its own: ``python -m tests.engine.programs.hostile FOLDER STAGES SEED COUNT``. Every message is of a
kind there is, with each field out of the values that hurt: bounds and what is just past them, numbers that the broker
has given to others (workers' keys, batches, requests: they can be guessed), doubles, lists of other lengths, types that
do not belong there. Ends with 0 when all have been sent.
"""

from __future__ import annotations

import random
import secrets
import sys
import time
from typing import Any

import msgspec
import zmq

from engine import transport
from engine.core import introduction, wire
from engine.core.front import EPOCH_SHIFT
from engine.core.messages import (
    ITEMS_MOST,
    AnyMessage,
    Ask,
    Bye,
    Cancel,
    Consumed,
    FrontendBeat,
    Leave,
    Ready,
    Results,
    StreamEvents,
    Submit,
    Welcome,
    WorkerBeat,
)
from engine.core.routing import Route, Topology
from engine.transport import Endpoints

KINDS: list[Any] = list(AnyMessage.__args__)  # type: ignore[attr-defined]  # a union at run time
EXTREMES = [
    0, 1, -1, 2, 3, 7, 99, 200, 408, 599, 999, 1000, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**53 + 1, 2**63 - 1,
    2**63, 2**64 - 1, -(2**63),
]  # fmt: skip


# What mostly stands in a field, so that a message comes past the first look: the extremes are in the others.
USUAL: dict[str, list[int]] = {
    "seqs": [1, 2, 3],
    "nbytes": [1, 2, 3],
    "routes": [0],
    "budgets_us": [1_000_000],
    "statuses": [200, 408],
    "batch": [1, 2, 3],
}


class Hostile:
    def __init__(self, folder: str, stages: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.names = tuple(f"s{stage}" for stage in range(stages))
        self.ctx = transport.context()
        where = Endpoints(folder, self.names)
        self.socks: list[tuple[zmq.Socket[bytes], list[Any]]] = [  # and what is heard there
            (transport.dealer(self.ctx, where.front), [Submit, Cancel, Consumed, FrontendBeat]),
            (transport.dealer(self.ctx, where.admin), [Ask]),
            (transport.push(self.ctx, where.egress), [Results, StreamEvents]),
            *((transport.dealer(self.ctx, where.control(stage)), [WorkerBeat, Leave, Bye]) for stage in range(stages)),
            *((transport.push(self.ctx, where.intake(stage)), [Results]) for stage in range(stages)),
        ]
        self.epoch = 1
        self.usual: list[int] | None = None  # for the field that is filled in now
        self.keys = [0]  # that the broker has given to it

    def number(self) -> int:
        if self.usual is not None:
            return self.rng.choice(self.usual)
        pick = self.rng.random()
        if pick < 0.3:
            return self.rng.choice(EXTREMES)
        if pick < 0.5:
            return self.rng.randrange(0, 6)
        if pick < 0.75:
            return self.rng.choice(self.keys)
        return (self.epoch << EPOCH_SHIFT) + self.rng.randrange(0, 200)  # a request's number

    def value(self, kind: Any, n: int) -> Any:
        rng = self.rng
        if rng.random() < 0.02:
            return rng.choice([None, -1, 2**64 - 1, "x" * 2000, b"\xff" * 100, [], {}, [[]], True, 1e300])
        info = kind
        if isinstance(info, msgspec.inspect.Metadata):
            return self.value(info.type, n)
        if isinstance(info, msgspec.inspect.IntType):
            return self.number()
        if isinstance(info, msgspec.inspect.StrType):
            return rng.choice(["", "text/plain", "status", "metrics", "about", "s0", "x" * 255, "\n\r\x00", "é" * 300])
        if isinstance(info, msgspec.inspect.BytesType):
            return rng.choice([b"", b"\x00", b"junk" * 20, b"\xc1", bytes(range(256))])
        if isinstance(info, msgspec.inspect.BoolType):
            return rng.random() < 0.5
        if isinstance(info, msgspec.inspect.ListType):
            many = n if rng.random() < 0.9 else rng.choice([0, 1, n + 1, 50])
            if rng.random() < 0.002:
                return [1] * (ITEMS_MOST + 1)
            made = [self.value(info.item_type, n) for _ in range(many)]
            return made + made[:1] if rng.random() < 0.1 else made
        if isinstance(info, msgspec.inspect.DictType):
            keys = [self.value(info.key_type, 1) for _ in range(rng.randrange(0, 3))]
            return {key: self.value(info.value_type, 1) for key in keys if not isinstance(key, list | dict)}
        if isinstance(info, msgspec.inspect.TupleType):
            return [self.value(one, 1) for one in info.item_types]
        if isinstance(info, msgspec.inspect.UnionType):
            return self.value(rng.choice(info.types), n)
        return None

    def message(self, heard: list[Any]) -> list[bytes]:
        rng = self.rng
        kind = rng.choice(heard if rng.random() < 0.8 else KINDS)
        n = rng.randrange(1, 4)
        payloads = [rng.randbytes(rng.randrange(0, 20)) for _ in range(n)]
        fields = []
        struct = msgspec.inspect.type_info(kind)
        assert isinstance(struct, msgspec.inspect.StructType)
        for field in struct.fields:
            if field.name == "layout":
                fields.append([len(one) for one in payloads] if rng.random() < 0.95 else self.value(field.type, n))
            elif field.name in ("refs", "memory") and rng.random() < 0.9:
                fields.append({} if field.name == "refs" else None)
            elif field.name == "stage" and rng.random() < 0.8:
                fields.append(rng.randrange(len(self.names)))
            else:
                self.usual = USUAL.get(field.name) if rng.random() < 0.8 else None
                if kind is Ready and field.name == "worker":  # it is given no work: good requests must not wait for it
                    self.usual = [0]
                fields.append(self.value(field.type, n))
                self.usual = None
        if rng.random() < 0.05:
            fields = fields[: rng.randrange(len(fields) + 1)]
        carries = any(field.name == "layout" for field in struct.fields)
        try:
            header = msgspec.msgpack.encode([struct.tag, *fields])
        except (TypeError, OverflowError):  # a key that cannot be one
            return [b"\xc1"]
        return [len(header).to_bytes(4, "little") + header + (b"".join(payloads) if carries else b"")]

    def words(self) -> list[bytes]:
        """An introduction, mostly one that is taken."""
        rng = self.rng
        topology = Topology(self.names, (Route("/inference", tuple(range(len(self.names)))),))
        who = introduction.introduce(
            rng.choice([introduction.FRONTEND, introduction.WORKER]),
            topology,
            deployment="t",
            instance=secrets.token_hex(4) if rng.random() < 0.7 else "the same",
            host=rng.choice([transport.host_token(), "elsewhere"]),
            pid=rng.choice([1, 2**31 - 1, 0]),
            stage=rng.choice(self.names),
            slot=rng.choice([1, 4096]),
        )
        frames = introduction.encode(who)
        if rng.random() < 0.2:
            return [frames[0].replace(b'"pid":1', b'"pid":1099511627776').replace(b'"slot":1', b'"slot":-1')]
        return frames

    def say(self, *, introduce: bool) -> None:
        sock, heard_there = self.rng.choice(self.socks)
        frames = self.words() if introduce else self.message(heard_there)
        until = time.monotonic() + 10
        # Some of it twice; and on the front what was submitted just now is withdrawn, each number twice.
        again = [frames] * (self.rng.random() < 0.1)
        if Submit in heard_there and self.rng.random() < 0.3:
            again.append([bytes(wire.encode(Cancel([1, 1, 2, 2, 3, 3]))[0])])
        for one in (frames, *again):
            while not transport.send(sock, one):
                assert time.monotonic() < until, "no connection"
                time.sleep(0.001)
        while sock.type == zmq.DEALER and (heard := transport.recv(sock)) is not None:
            words = wire.decode(heard)[0]
            if isinstance(words, Welcome):
                self.keys.append(words.worker)


def main(folder: str, stages: str, seed: str, count: str, epoch: str) -> None:
    hostile = Hostile(folder, int(stages), int(seed))
    hostile.epoch = int(epoch)
    for turn in range(int(count)):
        hostile.say(introduce=turn % 40 < 3)
    for sock, _ in hostile.socks:
        sock.close(linger=2000)
    hostile.ctx.term()


if __name__ == "__main__":
    main(*sys.argv[1:])
