"""What is done to the network while requests come, and what has to come of it: one table, for tests and long runs."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Final

from engine.core.liveness import LIMIT_S
from hosts.scene import Scene, Tally, wait_for

BEFORE_S: Final = 1.0  # of load, before a fault
AFTER_S: Final = 2.0  # and behind it
NOTICED_S: Final = LIMIT_S + 0.5  # until a host that has vanished is given up
LATENCY_S: Final = LIMIT_S + 0.5 + 0.2  # of a request that it held: found out, and computed elsewhere
BACK_S: Final = 1.5  # until all serve again, once that can be
KILLED_S: Final = 0.1  # until a process that was killed is known to be gone
LATE_S: Final = 0.5  # beyond a deadline, for an answer of 408 or 503
SLACK_S: Final = 0.3  # of two busy CPUs, for processes that look at each other


@dataclass
class Seen:
    """A row, once."""

    tally: Tally
    twice: int  # items that a stage has begun again
    deaths: int
    problems: list[str]
    noticed_s: float = inf
    back_s: float = inf


@dataclass(frozen=True)
class Row:
    """``act`` does it, for as long as it says with each step it yields; ``ends`` when nothing is as before afterwards.

    ``lossless``: every request is answered 200, and within ``worst_s``. ``cuts``: nobody can be answered during the
    fault; who has 2 s more than it lasts is answered 200. Otherwise only what must hold in any case does.
    """

    id: str
    about: str
    act: Callable[[Scene, random.Random, float], Iterator[float]]
    lossless: bool = True
    cuts: bool = False
    worst_s: float = LATENCY_S
    notices_s: float = inf  # until the broker holds fewer ready than all
    is_back: bool = True  # all are ready again within BACK_S of the end
    ends: bool = False


def run(row: Row, scene: Scene, *, rate: float, seconds: float, seed: int, timeout_s: float) -> Seen:
    """One row on a scene that is ready, with a fault of so many seconds."""
    rng = random.Random(seed)
    scene.forget()
    deaths = scene.deaths()
    steps = row.act(scene, rng, seconds)
    lasts = BEFORE_S + AFTER_S + seconds
    end = scene.begin(rate, lasts)
    time.sleep(BEFORE_S + rng.random() * 0.2)
    began = time.monotonic()
    try:
        for pause in steps:
            time.sleep(pause)
    finally:
        scene.lab.heal()
        healed = time.monotonic()
        tally = end()
    problems = list(_problems(row, tally, seconds, timeout_s))
    seen = Seen(tally, 0, 0, problems)
    if row.is_back:
        try:
            wait_for("readiness", partial(_is_whole, scene, healed), within_s=20.0)
        except AssertionError:
            problems.append(f"not ready again: {scene.ready}")
        seen.back_s = scene.whole_after(healed)
        if seen.back_s > BACK_S + SLACK_S:
            problems.append(f"all serve again after {seen.back_s:.2f} s")
    seen.noticed_s = scene.changed_after(began)
    if row.notices_s < inf and seen.noticed_s > row.notices_s + SLACK_S:
        problems.append(f"noticed after {seen.noticed_s:.2f} s")
    seen.twice, seen.deaths = scene.twice(), scene.deaths() - deaths
    return seen


def _problems(row: Row, tally: Tally, seconds: float, timeout_s: float) -> Iterator[str]:
    if tally.wrong:
        yield f"{tally.wrong} wrong"
    if none := tally.statuses[0]:
        yield f"{none} without any answer"
    if bad := tally.statuses.keys() - {200, 408, 429, 503}:
        yield f"answers of {sorted(bad)}"
    if tally.worst_s > timeout_s + LATE_S + SLACK_S:
        yield f"an answer after {tally.worst_s:.2f} s"
    lossless = row.lossless or (row.cuts and timeout_s > seconds + LIMIT_S)
    if lossless and tally.lost:
        yield f"{tally.lost} lost {dict(tally.statuses)} between {tally.bad}"
    if lossless and not row.cuts and tally.worst_s > row.worst_s + SLACK_S:
        yield f"worst {tally.worst_s:.2f} s"


# --- what is done ----------------------------------------------------------------------------------------------------


def cut(host: str, *, to: bool = True, of: bool = True) -> Callable[[Scene, random.Random, float], Iterator[float]]:
    def act(scene: Scene, rng: random.Random, seconds: float) -> Iterator[float]:
        scene.lab.cut(host, to=to, of=of)
        yield seconds
        scene.lab.heal()

    return act


def flap(scene: Scene, rng: random.Random, seconds: float) -> Iterator[float]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        scene.lab.cut("w1")
        yield 2.0
        scene.lab.heal()
        yield 2.0


def kills(scene: Scene, rng: random.Random, seconds: float) -> Iterator[float]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        host, stage = rng.choice(("w1", "w2")), rng.choice(("prep", "encode"))
        at = time.monotonic()
        os.kill(rng.choice(scene.lab[host].pids("worker", stage, "--slot")), signal.SIGKILL)
        wait_for("a death to be noticed", partial(_is_noticed, scene, at), within_s=20.0)
        took = scene.changed_after(at)
        assert took < KILLED_S + SLACK_S, f"a killed process was noticed after {took:.2f} s"
        wait_for("its replacement", partial(_is_whole, scene, at), within_s=20.0)
        yield 0.2


def _is_noticed(scene: Scene, at: float) -> bool:
    return scene.changed_after(at) < inf


def _is_whole(scene: Scene, at: float) -> bool:
    return scene.whole_after(at) < inf


def resets(scene: Scene, rng: random.Random, seconds: float) -> Iterator[float]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        scene.lab.reset()
        yield 2.0


def lose(share: float) -> Callable[[Scene, random.Random, float], Iterator[float]]:
    def act(scene: Scene, rng: random.Random, seconds: float) -> Iterator[float]:
        for host in ("front", "w1", "w2"):
            scene.lab.lose(host, share)
        yield seconds
        scene.lab.heal()

    return act


def hold(scene: Scene, rng: random.Random, seconds: float) -> Iterator[float]:
    """For twice as long a worker on a live host keeps its interpreter, and nobody takes it for dead."""
    began = time.monotonic()
    held = scene.begin(10, 0.1, hold_s=2 * seconds)
    statuses = held().statuses  # 408 where it lasts longer than requests may take
    assert set(statuses) <= {200, 408}, statuses
    assert 408 in statuses or time.monotonic() - began > 2 * seconds, "it was not held"
    yield max(0.0, began + 2 * seconds + AFTER_S - time.monotonic())
    assert scene.changed_after(began) == inf, "a worker that held its interpreter was given up"


def gone(scene: Scene, rng: random.Random, seconds: float) -> Iterator[float]:
    """As if its power had gone: nothing of it says goodbye."""
    scene.lab.cut("w2")
    scene.lab["w2"].close()
    yield seconds


ROWS: Final = (
    Row("cut", "a host of workers is cut off", cut("w1"), notices_s=NOTICED_S),
    Row("deaf", "nothing comes to it", cut("w1", of=False), notices_s=NOTICED_S),
    Row("mute", "nothing comes of it", cut("w1", to=False), notices_s=NOTICED_S),
    Row("flap", "cut off for 2 s, back for 2 s", flap),
    Row("kill", "its workers are killed", kills, worst_s=1.0),
    Row("reset", "every connection is reset every 2 s", resets, worst_s=1.0),
    Row("front", "the frontend is cut off", cut("front"), lossless=False, cuts=True),
    Row("broker", "the broker is cut off", cut("broker"), lossless=False, cuts=True, is_back=False),
    Row("hold", "a worker holds its interpreter, for twice as long", hold, worst_s=inf),
    Row("loss5", "5 % of all frames are lost", lose(0.05), worst_s=3.0),
    Row("loss30", "30 % of all frames are lost", lose(0.30), lossless=False, is_back=False),
    Row("gone", "a host of workers loses its power", gone, notices_s=NOTICED_S, is_back=False, ends=True),
)
