"""Where the broker listens: addresses, and paths that are never longer than a system takes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from engine import transport
from engine.config import build
from engine.config.endpoints import LANE_KEYS, PATH_MAX, Endpoints, cell_dir, is_cell, is_name, room
from engine.core.front import EPOCHS
from engine.core.stage import KEY_SHIFT
from engine.errors import ConfigError


def made(file: Path, *, stages: int = 1, environ: dict[str, str] | None = None, **engine: str) -> None:
    data = {"engine": engine, "stage": [{"name": f"s{index}", "worker": "m:C"} for index in range(stages)]}
    build(data, file=file, label="stages.toml", environ=environ or {})


def refusal(file: Path, **given: object) -> str:
    with pytest.raises(ConfigError) as told:
        made(file, **given)  # type: ignore[arg-type]
    assert len(told.value.problems) == 1
    return str(told.value)


FILE = Path("/srv/echo/stages.toml")


def test_the_keys_that_workers_get_are_those_that_were_counted_with() -> None:
    assert EPOCHS << KEY_SHIFT <= LANE_KEYS


@pytest.mark.parametrize(("stages", "cells"), [(1, 1), (2, 2), (11, 10), (101, 16), (300, 1)])
def test_every_path_in_a_run_directory_with_that_much_room_can_be_bound(stages: int, cells: int) -> None:
    base = "/" + "x" * (room(stages, cells) - 1)
    found = Endpoints(str(cell_dir(Path(base), cells - 1)), tuple(map(str, range(stages))))
    last = stages - 1
    named = [found.front, found.admin, found.egress, found.control(last), found.intake(last)]
    longest = max(len(name.removeprefix("ipc://")) for name in [*named, found.lane(last, LANE_KEYS - 1)])
    assert longest == PATH_MAX


def test_a_path_of_that_length_is_one_that_the_system_takes(tmp_path: Path) -> None:
    """Bound relative to nothing: by its whole name, as ZeroMQ does."""
    folder = Path(os.path.commonpath([tmp_path, "/tmp"])) / f"sl-{os.getpid()}"
    folder.mkdir()
    try:
        path = folder / ("y" * (PATH_MAX - len(str(folder)) - 1))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
        path.unlink()
        with pytest.raises(OSError, match="too long"), socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"{path}y")
    finally:
        folder.rmdir()


def test_every_socket_in_a_run_directory_is_known_by_its_name() -> None:
    ends = Endpoints("/run/x", ("a", "b"))
    made = [ends.front, ends.admin, ends.egress, ends.control(1), ends.intake(12), ends.lane(11, LANE_KEYS - 1)]
    near = ends.near
    assert near is not None
    made += [near.front, near.egress, near.intake(12), near.lane(11, LANE_KEYS - 1)]
    assert all(is_name(endpoint.rpartition("/")[2]) for endpoint in made)
    assert is_name(Path(Endpoints("/run/x", ("a",)).handles or "").name)
    assert not any(map(is_name, ("bus", "front.1", "agent-7", "lock", "l1")))


def test_unix_sockets_are_beside_the_others_and_only_within_a_host() -> None:
    here = Endpoints("/run/x", ("a",))
    near = here.near
    assert near is not None
    assert (near.front, near.egress, near.intake(0)) == (
        "unix:///run/x/front-u",
        "unix:///run/x/egress-u",
        "unix:///run/x/intake-0-u",
    )
    assert near.lane(0, 255) == "unix:///run/x/l0-ff"  # of which there is one, of either kind
    assert Endpoints("tcp://h:1", ("a",)).near is None


def test_the_first_cell_lies_in_the_run_directory_and_the_others_in_folders_of_their_own() -> None:
    folders = [cell_dir(Path("/run/x"), cell) for cell in range(3)]
    assert folders == [Path("/run/x"), Path("/run/x/cell-2"), Path("/run/x/cell-3")]
    assert all(is_cell(folder.name) for folder in folders[1:])
    assert not any(map(is_cell, ("cell", "cell-", "cell-2x", "cells-2", "front")))


def test_lanes_differ_by_stage_worker_and_broker() -> None:
    found = Endpoints("/run", ("a",))
    lanes = {
        found.lane(stage, (epoch << KEY_SHIFT) + key) for stage in range(20) for epoch in (1, 2) for key in (1, 17)
    }
    assert len(lanes) == 80


# --- what is said where one would be too long ------------------------------------------------------------------------


def test_the_longest_name_fits_where_sessions_have_their_sockets() -> None:
    made(Path(f"/srv/{'n' * 64}/stages.toml"), environ={"XDG_RUNTIME_DIR": "/run/user/1000"})
    made(FILE, name="n" * 64)


def test_a_long_run_dir_is_refused_with_how_long_it_may_be() -> None:
    said = refusal(FILE, run_dir="/srv/" + "r" * 100)
    assert said.startswith(f"stages.toml: engine.run_dir: expected a path of at most {room(1)} bytes")


def test_letters_of_several_bytes_count_as_such() -> None:
    path = "/srv/" + "ü" * (room(1) // 2 - 2)
    assert len(path) < room(1) < len(path.encode())
    assert "engine.run_dir" in refusal(FILE, run_dir=path)


def test_many_stages_leave_less_room() -> None:
    path = "/" + "r" * (room(1) - 1)
    made(FILE, run_dir=path)
    assert "engine.run_dir" in refusal(FILE, run_dir=path, stages=300)


def test_a_long_name_under_a_long_folder_is_what_to_shorten() -> None:
    session = {"XDG_RUNTIME_DIR": "/run/" + "u" * 30}
    said = refusal(FILE, name="n" * 60, environ=session)
    assert said.startswith(f'stages.toml: engine.name: "{"n" * 60}" is too long')
    said = refusal(Path(f"/srv/{'f' * 60}/stages.toml"), environ=session)
    assert "the name of the folder, is too long" in said
    assert "set a shorter name or engine.run_dir" in said


def test_where_no_name_would_be_short_enough_the_folder_is_named() -> None:
    said = refusal(FILE, name="echo", environ={"XDG_RUNTIME_DIR": "/run/" + "u" * 100})
    assert said.startswith("stages.toml: engine.run_dir: set a short one")
    assert "$XDG_RUNTIME_DIR" in said


def test_without_sockets_in_it_a_run_dir_may_be_long() -> None:
    made(FILE, run_dir="/srv/" + "r" * 100, bind="tcp://127.0.0.1:7000", insecure=True)


# --- sockets ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path("/tmp") / f"sl-ü-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


def test_a_lane_leaves_no_file_behind(folder: Path) -> None:
    context = transport.context()
    try:
        lane = transport.lane(context, Endpoints(str(folder), ("a",)).lane(0, 5))
        assert [path.name for path in folder.iterdir()] == ["l0-5"]
        transport.unbind(lane)
        assert list(folder.iterdir()) == []
    finally:
        context.term()


def test_a_path_that_is_too_long_leaves_no_socket_behind(folder: Path) -> None:
    context = transport.context()
    with pytest.raises(transport.StartError, match="too long"):
        transport.lane(context, f"ipc://{folder}/{'y' * 100}")
    context.term()  # would wait for ever for a socket that is open


def test_what_the_lanes_of_a_killed_broker_left_is_removed(folder: Path) -> None:
    ends = Endpoints(str(folder), ("a",))
    ctx = transport.context()
    lanes = [transport.lane(ctx, ends.lane(0, key)) for key in (1, 2)]
    kept = transport.pull(ctx, ends.egress)
    (folder / "l0-abc").write_text("no socket")
    transport.remove_lanes(ends)
    assert sorted(path.name for path in folder.iterdir()) == ["egress", "l0-abc"]
    transport.remove_lanes(Endpoints(str(folder / "nowhere"), ("a",)))
    for sock in (*lanes, kept):
        sock.close()
    ctx.term()
    for left in folder.iterdir():
        left.unlink()


def test_a_context_has_room_for_the_lanes_of_many_workers() -> None:
    ctx = transport.context()
    try:
        assert ctx.get(zmq.MAX_SOCKETS) >= 2 * 16_384
    finally:
        ctx.term()
