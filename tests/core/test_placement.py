"""Who runs where, as tables."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.placement import (
    THREAD_VARIABLES,
    Share,
    Want,
    assign_device,
    frontend_processes,
    kept_free,
    own_env,
    share_cpus,
    spare_share,
    thread_env,
)

AUTO, ALL = "auto", "all"


@pytest.mark.parametrize(
    ("available", "wants", "expected"),
    [
        pytest.param([0, 1, 2, 3], [(AUTO, 2)], [[((0, 1), 2), ((2, 3), 2)]], id="equal contiguous runs"),
        pytest.param(
            [0, 1, 2, 3, 4],
            [(AUTO, 1), (AUTO, 1)],
            [[((0, 1, 2), 3)], [((3, 4), 2)]],
            id="the rest goes to the first",
        ),
        pytest.param([4, 6], [(AUTO, 2)], [[((4,), 1), ((6,), 1)]], id="numbers need not begin at 0"),
        pytest.param([0, 1], [(AUTO, 3)], [[((), 1)] * 3], id="more workers than CPUs: nobody is pinned"),
        pytest.param([0, 1], [(ALL, 2)], [[((), 0)] * 2], id="all: threads are left alone too"),
        pytest.param([0, 1, 2, 3], [([2, 3], 2)], [[((2, 3), 1)] * 2], id="a list is shared by the stage's workers"),
        pytest.param([0, 1, 2, 3], [([[3], [0, 1]], 2)], [[((3,), 1), ((0, 1), 2)]], id="one list per worker"),
        pytest.param(
            [0, 1, 2, 3],
            [([0], 1), (AUTO, 1)],
            [[((0,), 1)], [((1, 2, 3), 3)]],
            id="what is listed is not dealt out",
        ),
        pytest.param([0], [([0], 1), (AUTO, 1)], [[((0,), 1)], [((0,), 1)]], id="unless nothing else is left"),
        pytest.param([0, 1], [], [], id="nobody"),
    ],
)
def test_cpus_are_dealt_out(available: list[int], wants: list[Any], expected: list[Any]) -> None:
    shares = share_cpus(available, [Want(cpus, workers) for cpus, workers in wants])
    assert shares == [tuple(Share(cpus, threads) for cpus, threads in stage) for stage in expected]


ANYWHERE: frozenset[int] = frozenset()
HIGH = frozenset(range(4, 8))


@pytest.mark.parametrize(
    ("available", "near", "expected"),
    [
        pytest.param(range(8), [None, HIGH], [(0, 1, 2, 3), (4, 5, 6, 7)], id="as it would be"),
        pytest.param(range(8), [HIGH, None], [(4, 5, 6, 7), (0, 1, 2, 3)], id="near its GPU"),
        pytest.param(range(8), [None, HIGH, HIGH, None], [(0, 1), (4, 5), (6, 7), (2, 3)], id="two of them"),
        pytest.param(range(2, 8), [HIGH], [(2, 3, 4, 5, 6, 7)], id="the only one has all"),
        pytest.param(range(3), [None, HIGH], [(1, 2), (0,)], id="none of those is there"),
        pytest.param(range(6), [HIGH, None], [(0, 4, 5), (1, 2, 3)], id="too few of those are there"),
        pytest.param(range(4), [None] * 6 + [ANYWHERE], [(1, 2, 3)] * 6 + [(0,)], id="the others share"),
        pytest.param(range(8), [None] * 9 + [HIGH], [(0, 1, 2, 3, 5, 6, 7)] * 9 + [(4,)], id="the others share, near"),
        pytest.param(range(2), [ANYWHERE] * 3, [()] * 3, id="more GPUs than CPUs"),
        pytest.param(range(2), [None] * 3, [()] * 3, id="no GPU"),
    ],
)
def test_a_worker_with_a_gpu_has_a_cpu_of_its_own_near_it(
    available: range, near: list[frozenset[int] | None], expected: list[tuple[int, ...]]
) -> None:
    (shares,) = share_cpus(list(available), [Want(AUTO, len(near), tuple(near))])
    assert [share.cpus for share in shares] == expected
    assert all(share.threads >= 1 for share in shares)


@pytest.mark.parametrize(
    ("shares", "cpus", "threads"),
    [
        ([((0, 1), 2), ((2, 3), 2)], (0, 1, 2, 3), 2),  # of whichever it replaces, when it does
        ([((0, 1), 2), ((2,), 1)], (0, 1, 2), 1),
        ([((), 1)] * 3, (), 1),
        ([((), 0)], (), 0),
        ([], (), 0),
    ],
)
def test_a_spare_has_the_place_of_any_and_the_threads_of_one(
    shares: list[tuple[tuple[int, ...], int]], cpus: tuple[int, ...], threads: int
) -> None:
    assert spare_share([Share(*share) for share in shares]) == Share(cpus, threads)


@pytest.mark.parametrize(
    ("quota", "wants", "threads"),
    [
        (0.5, [(AUTO, 1)], [1]),
        (8.0, [(AUTO, 1)], [4]),  # no more than there are CPUs
        (2.0, [(AUTO, 2)], [1, 1]),
        (3.9, [(AUTO, 1), ([3], 1)], [3, 1]),  # who names CPUs gets them
        (2.0, [("all", 1)], [2]),
        (2.0, [("all", 1), (AUTO, 1)], [1, 1]),
    ],
)
def test_a_quota_bounds_the_threads(quota: float, wants: list[Any], threads: list[int]) -> None:
    """Four CPUs in the mask, and time for fewer."""
    shares = share_cpus(range(4), [Want(cpus, workers) for cpus, workers in wants], quota=quota)
    assert [one.threads for stage in shares for one in stage] == threads
    free = share_cpus(range(4), [Want(cpus, workers) for cpus, workers in wants])
    assert [one.cpus for stage in shares for one in stage] == [one.cpus for stage in free for one in stage]


def test_thread_counts_leave_alone_what_the_user_has_set() -> None:
    assert thread_env(0) == {}
    assert thread_env(3) == dict.fromkeys(THREAD_VARIABLES, "3")
    assert "OMP_NUM_THREADS" not in thread_env(3, {"OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [
        ("cpu", 2, ["cpu", "cpu", "cpu"]),
        ("auto", 0, ["cpu", "cpu", "cpu"]),
        ("auto", 2, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda", 2, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda", 0, ["cuda:0", "cuda:0", "cuda:0"]),
        ("cuda:1", 4, ["cuda:1", "cuda:1", "cuda:1"]),
        (["cuda:3", "cuda:1"], 4, ["cuda:3", "cuda:1", "cuda:3"]),
        (["cpu", "cuda:0"], 1, ["cpu", "cuda:0", "cpu"]),
    ],
)
def test_devices_are_dealt_out_in_turn(device: Any, gpus: int, expected: list[str]) -> None:
    assert [assign_device(device, slot, gpus) for slot in (1, 2, 3)] == expected


@pytest.mark.parametrize(
    ("env", "slot", "expected"),
    [
        ({}, 1, {}),
        ({"A": "1"}, 2, {"A": "1"}),
        ([{"A": "1"}, {"B": "2"}], 1, {"A": "1"}),
        ([{"A": "1"}, {"B": "2"}], 2, {"B": "2"}),
        ([], 1, {}),
    ],
)
def test_a_worker_gets_its_own_environment(env: Any, slot: int, expected: dict[str, str]) -> None:
    assert own_env(env, slot) == expected


@pytest.mark.parametrize(
    ("cpus", "workers", "number"),
    [
        (0.5, 1, 1),
        (1, 1, 1),
        (2, 1, 1),
        (4, 1, 1),
        (6, 1, 2),
        (8, 1, 3),
        (16, 1, 4),
        (16, 8, 3),
        (16, 450, 1),
        (96, 8, 4),
    ],
)
def test_frontend_processes_are_as_many_as_the_machine_carries(cpus: float, workers: int, number: int) -> None:
    assert frontend_processes(cpus, 1 + workers) == number


@pytest.mark.parametrize(
    ("cpus", "frontends", "kept"), [(1, 1, 0), (2, 1, 0), (4, 1, 1), (8, 3, 2), (16, 4, 4), (96, 4, 5)]
)
def test_of_many_cpus_some_are_kept_for_the_broker_and_the_frontends(cpus: int, frontends: int, kept: int) -> None:
    assert kept_free(range(cpus), 1 + frontends) == kept


def test_several_brokers_have_more_frontends_and_more_cpus_left_to_them() -> None:
    assert [frontend_processes(32, 4 + brokers, brokers) for brokers in (1, 2, 4)] == [4, 8, 12]
    assert [kept_free(range(64), 8 + brokers) for brokers in (1, 2)] == [9, 10]
