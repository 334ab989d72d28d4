"""Results that go on in parts, and come together: of any kind that user code may return, which stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pydantic
import pytest

from engine.core import gathered, wire
from engine.core.arena import Ref
from engine.core.messages import Results, Status
from engine.core.routing import FINAL, JOIN, Route, Split, Topology
from engine.errors import EncodingError
from stages.base import Worker
from stages.compute import Codec, run_batch
from stages.context import ItemIn
from stages.spread import parted, together
from stages.ways import Skip, WrongWay, way_of

SPLIT = Split((1,), 2, field="crops")


class Named(NamedTuple):
    crops: list[int]
    page: int = 3


@dataclass(frozen=True)
class Frozen:
    crops: list[int]
    page: int = 3


@dataclass(frozen=True, slots=True)
class Slotted:
    crops: list[int]
    page: int = 3


class Struct(msgspec.Struct, frozen=True):
    crops: list[int]
    page: int = 3


class Plain(msgspec.Struct):
    crops: list[int]
    page: int = 3


class Model(pydantic.BaseModel):
    model_config = {"frozen": True}
    crops: list[int]
    page: int = 3


class Validated(pydantic.BaseModel):
    model_config = {"validate_assignment": True}
    crops: list[int]
    page: int = 3


@pytest.mark.parametrize("kind", [Named, Frozen, Slotted, Struct, Plain, Model, Validated])
def test_any_object_comes_apart_and_together_and_stays_as_it_was(kind: Any) -> None:
    """What its class says of the field is said of whoever makes one: results may be of another type than elements."""
    made = kind(crops=[1, 2])
    frame, parts = parted(SPLIT, made)
    assert (type(frame), frame.crops, frame.page, parts) == (kind, [], 3, [1, 2])
    whole = together(SPLIT, frame, ["one", None])
    assert (type(whole), whole.crops, whole.page) == (kind, ["one", None], 3)
    assert (made.crops, frame.crops) == ([1, 2], [])


def test_a_field_that_is_computed_is_told() -> None:
    class Computed:
        @property
        def crops(self) -> list[int]:
            return [1, 2]

    with pytest.raises(WrongWay, match=r'"crops" of a result .* a Computed, .* a field that is stored'):
        parted(SPLIT, Computed())


def test_an_array_of_no_dimensions_is_no_list() -> None:
    with pytest.raises(WrongWay, match='"crops" of its result is a ndarray'):
        parted(SPLIT, {"crops": np.array(3)})


def test_of_several_branches_each_may_be_as_large_as_its_stage_takes() -> None:
    split = Split((1, 2), 3, names=("x", "y"))
    value = b"x" * 1000
    codec = Codec(Worker(), most_between=1500)
    outcome = codec.apart(split, value)
    assert outcome.parts is not None
    assert len(outcome.parts) == 2
    with pytest.raises(EncodingError, match="max_queue_bytes of the next stage"):
        Codec(Worker(), most_between=900).apart(split, value)
    with pytest.raises(EncodingError, match="in 2 parts"):  # which all come to one stage
        codec.apart(Split((1,), 2), [value, value])


@pytest.mark.parametrize("is_shared", [False, True])
def test_nothing_is_sent_past_the_parts_that_would_be_taken_for_them(is_shared: bool) -> None:
    """A format of the service's own may hand on what its client sent."""

    class Raw(Worker):
        def forward(self, data: Any) -> Any:
            return Skip(data, to="post")

        def deserialize(self, body: Any) -> Any:
            return bytes(body)

        def serialize_ipc(self, data: Any) -> bytes:
            return bytes(data)

    topology = Topology(
        ("pre", "one", "post"), (Route("/r", (0, 1, 2), (2, JOIN, FINAL), {0: Split((1,), 2, field="crops")}),)
    )
    codec = Codec(Raw())
    if is_shared:
        codec.put = lambda data: Ref(1, 0, len(data))

    def sent(body: bytes) -> int:
        item = ItemIn(uid=1, payload=body, first=True, last=False, way=way_of(topology, 0, 0))
        return run_batch(Raw(), [item], max_batch_size=1, codec=codec).outcomes[0].status

    assert sent(b"anything else") == Status.OK
    assert sent(bytes(gathered.pack(b"", [b"forged"]))) == Status.FAILED  # type: ignore[arg-type]  # it is small


TABLE = Topology(("a", "b", "c"), (Route("/r", (0, 1, 2), (2, JOIN, FINAL), {0: SPLIT}),))


class Same(Worker):
    def forward(self, value: Any) -> Any:
        return value


def sent(codec: Codec, payloads: list[Any], *, afar: bool) -> list[Any]:
    """As they come to the next worker: by tcp, in frames."""
    if not afar:
        return payloads
    message = Results(0, 1, 1, [0] * len(payloads), [200] * len(payloads), [b""] * len(payloads))
    frames = [memoryview(bytearray(frame)) for frame in wire.encode(message, payloads)]
    return wire.decode(frames)[1]


@pytest.mark.parametrize("afar", [False, True])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(
    "shapes", [[(3, 2)] * 4, [(1, 2), (3,), (1, 1, 1), (0, 5)], [(40_000, 2), (3, 2), (0,), (9, 9_000)]]
)
def test_tensors_come_apart_and_together_as_they_were(library: str, shapes: list[Any], afar: bool) -> None:
    """Equal ones and unlike ones, some of no elements, and some so large that they are sent apart."""
    arrays = [np.full(shape, number, "int32") for number, shape in enumerate(shapes)]
    torch = pytest.importorskip("torch") if library == "torch" else None
    crops = arrays if torch is None else [torch.from_numpy(array) for array in arrays]
    codec = Codec(Same())
    outcome = codec.apart(SPLIT, {"crops": crops, "page": 3})
    assert outcome.parts is not None
    frame, *parts = sent(codec, [outcome.payload, *outcome.parts], afar=afar)
    worked = [codec.encode_between(codec.decode(ItemIn(1, part, first=False)) * 2) for part in parts]
    (whole,) = sent(codec, [gathered.pack(frame, sent(codec, worked, afar=afar))], afar=afar)
    found = codec.decode(ItemIn(1, whole, first=False, way=way_of(TABLE, 0, 2)))
    assert found["page"] == 3
    for got, crop in zip(found["crops"], crops, strict=True):
        assert (type(got), got.shape, got.dtype) == (type(crop), crop.shape, crop.dtype)
        assert bool((got == crop * 2).all())


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("shape", [(4, 3), (2, 40_000), (3, 0), (0, 3)])
def test_a_tensor_is_a_list_along_its_first_dimension(library: str, shape: tuple[int, int]) -> None:
    whole = np.arange(shape[0] * shape[1]).reshape(shape)
    torch = pytest.importorskip("torch") if library == "torch" else None
    codec = Codec(Same())
    outcome = codec.apart(SPLIT, {"crops": whole if torch is None else torch.from_numpy(whole)})
    assert outcome.parts is not None
    rows = [codec.decode(ItemIn(1, part, first=False)) for part in outcome.parts]
    assert len(rows) == shape[0]
    assert all(bool((np.asarray(row) == one).all()) for row, one in zip(rows, whole, strict=True))
    assert {type(row).__module__ for row in rows} <= {library}
