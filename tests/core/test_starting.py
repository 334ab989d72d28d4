"""A start as people watch it: what is heard of processes in, lines out."""

from __future__ import annotations

import pytest

from engine.core.processes import Begin, Child, Died, Failed, Kind, Loading, Ready, Spawn, Warming
from engine.core.starting import Row, Start, State, size, table

BROKER = Child(Kind.BROKER, "broker")
FRONTEND = Child(Kind.FRONTEND, "frontend")
ONE, TWO = (Child(Kind.WORKER, f"worker encode-{slot}", "encode", slot) for slot in (1, 2))
HELPER = Child(Kind.DAEMON, "daemon cache")
MIB = 1 << 20


def lines(*happened: object, now: float = 9.0, width: int = 60, height: int = 24, **told: object) -> list[str]:
    """What is shown at ``now``, with an event each second from 1.0 on."""
    start = Start([FRONTEND, ONE, TWO, BROKER])
    for at, what in enumerate(happened, 1):
        start.note(what, float(at))  # type: ignore[arg-type]
    rows = start.rows(now, **told)  # type: ignore[arg-type]
    return table("it is starting", rows, width=width, height=height, colour=False)


@pytest.mark.parametrize(
    ("happened", "broker", "encode", "frontend"),
    [
        ((), "waiting", "0/2 waiting", "waiting"),
        ((Begin(), Spawn(BROKER)), "starting 7.0 s", "0/2 waiting", "waiting"),
        ((Spawn(BROKER), Ready(BROKER)), "ready 1.0 s", "0/2 waiting", "waiting"),
        ((Spawn(ONE), Spawn(TWO), Loading(TWO)), "waiting", "0/2 starting 8.0 s", "waiting"),
        ((Spawn(ONE), Spawn(TWO), Loading(ONE), Loading(TWO)), "waiting", "0/2 loading 8.0 s", "waiting"),
        ((Spawn(ONE), Loading(ONE)), "waiting", "0/2 loading 8.0 s", "waiting"),  # the other has no turn yet
        ((Spawn(ONE), Loading(ONE), Warming(ONE, 3, 7)), "waiting", "0/2 warming 3/7 8.0 s", "waiting"),
        ((Spawn(ONE), Spawn(TWO), Ready(ONE), Loading(TWO)), "waiting", "1/2 loading 7.0 s", "waiting"),
        ((Spawn(ONE), Spawn(TWO), Ready(ONE), Ready(TWO)), "waiting", "2/2 ready 2.0 s", "waiting"),
        ((Spawn(ONE), Ready(ONE), Ready(ONE)), "waiting", "1/2 waiting", "waiting"),
        ((Spawn(ONE), Failed(ONE, "No\nmodel"), Died(ONE, 4)), "waiting", "0/2 failed: No model", "waiting"),
        ((Spawn(ONE), Died(ONE, -9)), "waiting", "0/2 failed: killed by SIGKILL", "waiting"),
        ((Spawn(ONE), Died(ONE, -9), Spawn(ONE)), "waiting", "0/2 starting 6.0 s", "waiting"),
    ],
)
def test_a_part_is_as_far_as_whoever_of_it_is_furthest_behind(
    happened: tuple[object, ...], broker: str, encode: str, frontend: str
) -> None:
    title, *shown = lines(*happened)
    assert title == "it is starting"
    assert [line.split(maxsplit=1)[0] for line in shown] == ["broker", "encode", "frontend"]
    assert [" ".join(line.split()[1:]) for line in shown] == [broker, encode, frontend]


def test_memory_and_devices_stand_behind() -> None:
    held = {BROKER: 30 * MIB, ONE: 1500 * MIB, TWO: 600 * MIB, FRONTEND: 0}
    shown = lines(width=80, memory=held.__getitem__, devices={ONE: "cuda:0", TWO: "cuda:1"})
    assert shown[1].endswith("30 MiB")
    assert shown[2].endswith("2.1 GiB  cuda:0, cuda:1")


def test_a_daemon_has_a_line_of_its_own_and_strangers_have_none() -> None:
    start = Start([BROKER, HELPER])
    start.note(Spawn(ONE), 1.0)
    assert [row.name for row in start.rows(2.0)] == ["broker", "daemon cache"]


def row(name: str, state: State = State.LOADING, what: str = "") -> Row:
    return Row(name, True, 0, 1, state, what or state.value, 1.0)


@pytest.mark.parametrize(("width", "height"), [(20, 2), (20, 24), (40, 5), (80, 3), (200, 100)])
def test_no_line_is_wider_and_no_picture_higher_than_the_terminal(width: int, height: int) -> None:
    rows = [row(f"stage-{n}", State.READY if n % 2 else State.FAILED, "failed: 型が違う " * 20) for n in range(12)]
    shown = table("a long title of a deployment", rows, width=width, height=height, colour=False)
    assert len(shown) <= height
    columns = [sum(2 if ord(char) > 0x2E80 else 1 for char in line) for line in shown]
    assert max(columns) <= width


def test_where_there_are_too_many_those_that_are_ready_are_left_out_first() -> None:
    rows = [row("a", State.READY), row("b"), row("c", State.READY), row("d"), row("e", State.READY)]
    shown = table("title", rows, width=80, height=5, colour=False)
    assert [line.split()[0] for line in shown] == ["title", "a", "b", "d", "and"]
    assert shown[-1].strip() == "and 2 more, 2 of them ready"


def test_colour_is_only_where_it_is_wanted_and_a_reason_moves_no_cursor() -> None:
    rows = [row("a", State.FAILED, "failed: \x1b[2J\x07gone")]
    assert "\x1b[31m" in "".join(table("t", rows, width=80, height=9, colour=True))
    plain = "".join(table("t", rows, width=80, height=9, colour=False))
    assert plain.isprintable()
    assert "?[2J?gone" in plain


@pytest.mark.parametrize(("count", "told"), [(0, "0 MiB"), (30 * MIB, "30 MiB"), (3 << 30, "3.0 GiB")])
def test_sizes_are_for_people(count: int, told: str) -> None:
    assert size(count) == told
