"""A class's requests and answers in the Open Inference Protocol."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
import numpy as np
import pydantic
import pytest
from hypothesis import given as given_hypothesis
from hypothesis import strategies as st
from numpy.typing import NDArray
from typing_extensions import NotRequired
from typing_extensions import TypedDict as OtherTypedDict

from engine import ClientError, SSEWorker, Tensor, Worker, testing
from engine.core import oip
from engine.core.oip import Asked
from engine.errors import EncodingError, StartError, ValidationError
from stages.oip import Tensors
from stages.tensors import DATATYPES

FP32 = Annotated[np.ndarray, Tensor("FP32", [-1, 2])]


class Arrays(TypedDict):
    a: FP32
    b: NDArray[np.int64]


class Sum(TypedDict):
    sum: Annotated[np.ndarray, Tensor("FP32", [-1, 2])]


@dataclass
class Words:
    text: str
    more: list[str]
    k: int = 3


class Struct(msgspec.Struct):
    x: list[list[float]]
    raw: bytes = b""


class Model(pydantic.BaseModel):
    k: int = pydantic.Field(ge=1)


def made(forward: Any, *, batch: int = 1, **fields: Any) -> Tensors:
    worker: Any = type("Made", (Worker,), {"forward": forward, **fields})()
    worker.stage, worker.max_batch_size = "made", batch
    return Tensors(worker, first=True, last=True)


def described(known: Tensors) -> list[tuple[str, str, list[int]]]:
    return [(one.name, one.datatype, one.shape) for one in known.inputs.described() or []]


def request(*inputs: Mapping[str, Any], behind: bytes = b"") -> tuple[bytes, Asked]:
    head = json.dumps({"inputs": inputs}).encode()
    return head + behind, Asked("m", len(head))


def given(name: str, data: Any, datatype: str = "FP32") -> dict[str, Any]:
    array = np.array(data)
    return {"name": name, "shape": array.shape, "datatype": datatype, "data": data}


# --- what classes say ------------------------------------------------------------------------------------------------


def test_a_typed_dict_says_all() -> None:
    def forward(self: Worker, data: Arrays) -> Sum:
        return {"sum": data["a"]}

    known = made(forward)
    assert described(known) == [("a", "FP32", [-1, 2]), ("b", "INT64", [-1])]
    value = known.decode(*request(given("b", [1, 2], "INT64"), given("a", [[1, 2]])))
    assert value["a"].tolist() == [[1, 2]]
    assert value["b"].dtype == np.int64
    assert [one.name for one in known.outputs.described() or []] == ["sum"]


class Other(OtherTypedDict):
    x: NDArray[np.float32]
    y: NotRequired[list[int]]


def test_what_may_be_left_out() -> None:
    def forward(self: Worker, data: Other) -> Any: ...

    known = made(forward)
    assert [(one.name, one.optional) for one in known.inputs.described() or []] == [("x", False), ("y", True)]
    assert list(known.decode(*request(given("x", [1])))) == ["x"]


def test_of_a_batch_it_is_the_type_of_one() -> None:
    def forward(self: Worker, data: list[Words]) -> list[Sum | ValidationError]:
        return []

    known = made(forward, batch=8)
    assert described(known) == [("text", "BYTES", [1]), ("more", "BYTES", [-1]), ("k", "INT64", [1])]
    value = known.decode(*request(given("text", ["ü"], "BYTES"), given("more", ["a", "b"], "BYTES")))
    assert value == Words("ü", ["a", "b"])
    value = known.decode(*request(given("text", ["x"], "BYTES"), given("more", [], "BYTES"), given("k", [5], "INT64")))
    assert value == Words("x", [], 5)


def test_a_struct_and_a_model() -> None:
    def of_struct(self: Worker, data: Struct) -> Any: ...
    def of_model(self: Worker, data: Model) -> Any: ...

    known = made(of_struct)
    assert described(known) == [("x", "FP64", [-1, -1]), ("raw", "BYTES", [1])]
    assert known.decode(*request(given("x", [[1.0]], "FP64"))) == Struct([[1.0]])
    known = made(of_model)
    assert known.decode(*request(given("k", [2], "INT64"))) == Model(k=2)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        known.decode(*request(given("k", [0], "INT64")))


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")

    def forward(self: Worker, data: Any) -> Any: ...

    forward.__annotations__["data"] = TypedDict("T", {"x": torch.Tensor})
    value = made(forward).decode(*request(given("x", [1, 2])))
    assert torch.equal(value["x"], torch.tensor([1.0, 2.0]))
    value["x"][0] = 9  # its own


def test_one_value_has_the_one_declared_name() -> None:
    def forward(self: Worker, data: np.ndarray) -> np.ndarray:
        return data

    known = made(forward, input_tensors={"x": Tensor("FP32", [-1])}, output_tensors={"y": Tensor("FP32", [-1])})
    value = known.decode(*request(given("x", [1, 2])))
    assert value.tolist() == [1, 2]
    assert json.loads(known.encode(value, Asked("m", 1))[0])["outputs"][0]["name"] == "y"


def test_what_is_declared_goes_before_the_annotation() -> None:
    def forward(self: Worker, data: Arrays) -> Any: ...

    known = made(forward, input_tensors={"b": Tensor("INT64", [3])})
    assert described(known)[1] == ("b", "INT64", [3])


def test_without_a_type_the_example_says_it() -> None:
    def forward(self: Worker, data: Any) -> Any: ...

    known = made(forward, example={"x": np.zeros((1, 4), np.float32)})
    assert described(known) == [("x", "FP32", [-1, -1])]
    with pytest.raises(ClientError, match="no such input"):
        known.decode(*request(given("y", [1])))
    assert made(forward).decode(*request(given("y", [1])))["y"].tolist() == [1]  # who says nothing gets anything


def test_own_methods_stand_between() -> None:
    class Own(Worker):
        input_tensors = {"text": Tensor("BYTES", [-1])}
        output_tensors = {"n": Tensor("INT32", [-1])}

        def forward(self, data: set[str]) -> set[str]:
            return data

        def deserialize_tensors(self, tensors: dict[str, Any]) -> set[str]:
            return {text.decode() for text in tensors["text"]}

        def serialize_tensors(self, data: set[str]) -> dict[str, Any]:
            return {"n": [len(data)], "unasked": 1}

    known = Tensors(Own(), first=True, last=True)
    assert known.own_decode
    assert known.own_encode
    value = known.decode(*request(given("text", ["a", "b", "a"], "BYTES")))
    assert value == {"a", "b"}
    assert json.loads(known.encode(value, Asked("m", 1))[0])["outputs"] == [
        {"name": "n", "datatype": "INT32", "shape": [1], "data": [2]}
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"forward": lambda self, data: data, "input_tensors": {"x": "FP32"}}, "a Tensor by name"),
        ({"forward": lambda self, data: data, "deserialize_tensors": lambda self, t: t}, "and no input_tensors"),
    ],
)
def test_a_class_that_does_not_say_enough_fails_to_start(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(StartError, match=words):
        made(**fields)


def test_types_that_are_no_tensors_fail_to_start() -> None:
    def takes(self: Worker, data: set[int]) -> Any: ...
    def gives(self: Worker, data: Any) -> complex: ...
    def stray(self: Worker, data: Arrays) -> Any: ...

    with pytest.raises(StartError, match="define deserialize_tensors"):
        made(takes)
    with pytest.raises(StartError, match="define serialize_tensors"):
        made(gives)
    with pytest.raises(StartError, match="name c, which Arrays has not"):
        made(stray, input_tensors={"c": Tensor("FP32")})
    stream: Any = type("Stream", (SSEWorker,), {"forward": lambda self, data: None})()
    with pytest.raises(StartError, match="streams"):
        Tensors(stream, first=False, last=True)


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.fixture
def known() -> Tensors:
    def forward(self: Worker, data: Arrays) -> Sum:
        return {"sum": data["a"]}

    return made(forward)


A, B = given("a", [[1, 2]]), given("b", [1], "INT64")
BINARY = {**{k: v for k, v in A.items() if k != "data"}, "parameters": {"binary_data_size": 8}}


@pytest.mark.parametrize(
    ("inputs", "behind", "words"),
    [
        ([A], b"", "'b' is missing"),
        ([A, A], b"", "there twice"),
        ([A, B, given("c", [1])], b"", "input 'c': there is no such input: it takes 'a', 'b'"),
        ([given("a", [[1, 2]], "FP64"), B], b"", "is FP64, and has to be FP32"),
        ([given("a", [[1, 2]], "FP31"), B], b"", "'FP31' is no datatype"),
        ([given("a", [1, 2]), B], b"", r"has the shape \[2\], and has to have \[-1, 2\]"),
        ([given("a", [[1, 2, 3]]), B], b"", "has the shape"),
        ([{**A, "shape": [2, 2]}, B], b"", "2 elements"),
        ([{**A, "shape": [-1, 2]}, B], b"", "dimensions"),
        ([{**A, "shape": [1.0, 2]}, B], b"", "cannot be read"),
        ([{**A, "data": [[1], [2, 3]]}, B], b"", "shape"),
        ([{**BINARY, "parameters": {}}, B], b"", "no data"),
        ([{**A, "parameters": {"binary_data_size": 8}}, B], bytes(8), "behind it"),
        ([{**A, "parameters": {"shared_memory_region": "x"}}, B], b"", "shared memory"),
        ([BINARY, B], bytes(7), "7 are left"),
        ([BINARY, B], bytes(9), "1 bytes are left behind"),
        ([{**BINARY, "parameters": {"binary_data_size": -8}}, B], bytes(8), "binary_data_size"),
        ([{**BINARY, "parameters": {"binary_data_size": True}}, B], bytes(8), "binary_data_size"),
        ([{**BINARY, "parameters": {"binary_data_size": 4}}, B], bytes(4), "8 bytes, and 4 were sent"),
        ([{"name": "a"}], b"", "cannot be read"),
        ([[]], b"", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(known: Tensors, inputs: list[Any], behind: bytes, words: str) -> None:
    with pytest.raises(ClientError, match=words):
        known.decode(*request(*inputs, behind=behind))


def test_an_output_that_there_is_not_is_refused_before_it_is_computed(known: Tensors) -> None:
    body, asked = request(A, B)
    with pytest.raises(ClientError, match="no output 'x': it gives 'sum'"):
        known.decode(body, msgspec.structs.replace(asked, outputs=[("x", False)]))


def test_a_body_without_json_is_the_one_input() -> None:
    def forward(self: Worker, data: Any) -> Any: ...

    raw = Asked("m", 0, binary=True)
    known = made(forward, input_tensors={"x": Tensor("FP32", [-1, 2])})
    assert known.decode(np.arange(6, dtype="f4").tobytes(), raw)["x"].shape == (3, 2)
    with pytest.raises(ClientError, match="bytes"):
        known.decode(bytes(7), raw)
    text = made(forward, input_tensors={"x": Tensor("BYTES", [-1])})
    assert text.decode(b"\x01\x00\x00\x00a", raw)["x"].tolist() == [b"a"]
    for tensors in (
        {"x": Tensor("FP32", [-1, -1])},
        {"x": Tensor("FP32")},
        {"x": Tensor("FP32", [1]), "y": Tensor("FP32", [1])},
    ):
        with pytest.raises(ClientError, match="without JSON"):
            made(forward, input_tensors=tensors).decode(bytes(4), raw)
    with pytest.raises(ClientError, match="bytes"):
        made(forward, input_tensors={"x": Tensor("FP32", [-1, 0])}).decode(bytes(4), raw)


def test_text_that_is_none_is_the_clients_affair() -> None:
    def forward(self: Worker, data: Words) -> Any: ...

    body, asked = request(
        {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}},
        given("more", [], "BYTES"),
        behind=b"\x01\x00\x00\x00\xff",
    )
    with pytest.raises(ClientError, match="UTF-8"):
        made(forward).decode(body, asked)


# --- whatever a client says ---------------------------------------------------------------------------------------

words = st.sampled_from(["a", "b", "text", "more", "k", "x", ""])
shapes = st.one_of(
    st.lists(st.integers(-2, 4), max_size=4),
    st.sampled_from(
        [[1], [0], [1, 2], [0, 2**31 - 1], [2**62, 2**62], [2**64], [1] * 40, [True], ["1"], [1.5], None, 3]
    ),
)
numbers = st.one_of(st.integers(), st.floats(), st.booleans(), st.sampled_from([None, "", "a", "ü"]))
data = st.recursive(numbers, lambda inner: st.lists(inner, max_size=3), max_leaves=8)
sizes = st.one_of(st.integers(-2, 40), st.sampled_from([True, "4", 4.0, None, 2**63]))
given_inputs = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "name": words,
            "shape": shapes,
            "datatype": st.sampled_from([*DATATYPES, "FP8", ""]),
            "data": data,
            "parameters": st.one_of(st.none(), st.fixed_dictionaries({}, optional={"binary_data_size": sizes})),
        },
    ),
    max_size=4,
)


@given_hypothesis(given_inputs, st.binary(max_size=80), st.integers(-3, 3), st.sampled_from(["arrays", "words", "any"]))
def test_whatever_is_sent_is_a_value_or_the_clients_mistake(
    inputs: list[Any], behind: bytes, off: int, which: str
) -> None:
    head = json.dumps({"inputs": inputs}).encode()
    known = {"arrays": ARRAYS, "words": WORDS, "any": ANY}[which]
    try:
        asked, _ = oip.read("m", head + behind, str(max(len(head) + off, 0)).encode())
        value = known.decode(head + behind, asked)
    except (oip.Malformed, ClientError):
        return
    with contextlib.suppress(ClientError, EncodingError):
        known.encode(value, asked)


def _arrays(self: Worker, data: Arrays) -> Any: ...
def _words(self: Worker, data: Words) -> Any: ...
def _any(self: Worker, data: Any) -> Any: ...


ARRAYS, WORDS, ANY = made(_arrays), made(_words), made(_any)


# --- answers ---------------------------------------------------------------------------------------------------------


def test_outputs_as_they_are_asked_for() -> None:
    def forward(self: Worker, data: Any) -> Any: ...

    known = made(forward)
    result = {"x": np.array([1, 2], np.float32), "t": ["a"]}
    body, headers = known.encode(result, Asked("m", 1, "7", [("t", True), ("x", False)]))
    length = int(headers["inference-header-content-length"])
    assert json.loads(body[:length]) == {
        "model_name": "m",
        "model_version": "1",
        "id": "7",
        "outputs": [
            {"name": "t", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}},
            {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]},
        ],
    }
    assert body[length:] == b"\x01\x00\x00\x00a"
    body, headers = known.encode(result, Asked("m", 1))
    assert headers == {"content-type": "application/json"}  # the other one says that bytes follow
    assert [one["name"] for one in json.loads(body)["outputs"]] == ["x", "t"]
    with pytest.raises(ClientError, match="no output 'z'"):
        known.encode(result, Asked("m", 1, "", [("z", True)]))


def test_results_of_a_type_with_fields() -> None:
    def forward(self: Worker, data: Any) -> Struct: ...

    known = made(forward)
    assert [one["name"] for one in json.loads(known.encode(Struct([[1.0]], b"r"), Asked("m", 1))[0])["outputs"]] == [
        "x",
        "raw",
    ]

    def untyped(self: Worker, data: Any) -> Any: ...

    known = made(untyped)
    assert len(json.loads(known.encode(Words("a", ["b"]), Asked("m", 1))[0])["outputs"]) == 3
    for odd in (3, object(), [1], None):
        with pytest.raises(EncodingError, match="return arrays by name"):
            known.encode(odd, Asked("m", 1))
    with pytest.raises(EncodingError, match="lacks the output 'x'"):
        made(untyped, output_tensors={"x": Tensor("FP32"), "y": Tensor("FP32")}).encode({"y": 1}, Asked("m", 1))


def test_an_example_is_a_request_to_try(known: Tensors) -> None:
    body = known.example_body({"a": np.ones((1, 2), np.float32), "b": np.array([3])})
    assert body is not None
    assert json.loads(body)["inputs"][0] == {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 1.0]}
    assert known.example_body({"a": np.ones((2,), np.float32), "b": np.array([3])}) is None  # it would be refused
    assert known.example_body(3) is None


# --- a service -------------------------------------------------------------------------------------------------------

SERVICE = """
from typing import Annotated, TypedDict
import numpy as np
from engine import Tensor, Worker

class Pair(TypedDict):
    x: Annotated[np.ndarray, Tensor("FP32", [-1, 2])]

class Double(Worker):
    example = [{"x": np.ones((1, 2), np.float32)}]

    def forward(self, data: list[Pair]) -> list[Pair]:
        for i, value in enumerate(data):
            value["x"] *= self.context(i).parameters.get("times", 2)
            if value["x"].sum() > 1000:
                raise ValueError("too much")
        return data

class Add(Worker):
    output_tensors = {"x": Tensor("FP32", [-1, 2]), "k": Tensor("INT32", [1])}

    def forward(self, data):
        return [{"x": value["x"] + 1, "k": 7} for value in data]

    def serialize(self, data):
        return data["x"].tobytes()
"""
FILE = """
[engine]
name = "t"
[[stage]]
name = "double"
worker = "service:Double"
max_batch_size = 4
[[stage]]
name = "add"
worker = "service:Add"
max_batch_size = 4
[[route]]
path = "/v2/models/m/infer"
protocol = "oip"
stages = ["double", "add"]
[[route]]
path = "/add"
stages = ["add"]
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[testing.Local]:
    (tmp_path / "service.py").write_text(SERVICE)
    (tmp_path / "stages.toml").write_text(FILE)
    with testing.local(tmp_path) as service:
        yield service


def test_a_route_of_two_stages_in_this_process(service: testing.Local) -> None:
    x = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    answer = service.post({"id": "i", "inputs": [x]})
    assert answer.json() == {
        "model_name": "m",
        "model_version": "1",
        "id": "i",
        "outputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [3.0, 5.0]},
            {"name": "k", "datatype": "INT32", "shape": [1], "data": [7]},
        ],
    }
    answer = service.post({"inputs": [x], "outputs": [{"name": "x", "parameters": {"binary_data": True}}]})
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    assert np.frombuffer(answer.body[length:], "<f4").tolist() == [3, 5]
    assert service.post({"inputs": [x], "parameters": {"times": 10}}).json()["outputs"][0]["data"] == [11.0, 21.0]
    assert service.post({"inputs": []}).json() == {"error": "bad request: the input 'x' is missing"}
    assert service.post(b"{").status == 400
    failed = service.post({"inputs": [{**x, "data": [1e6, 0]}]})
    assert (failed.status, failed.json()) == (500, {"error": "inference internal error"})


def test_the_dry_run_writes_the_examples_answers(tmp_path: Path, imports_are_undone: None) -> None:
    from engine.config import load
    from stages.dryrun import run

    (tmp_path / "service.py").write_text(SERVICE)
    (tmp_path / "stages.toml").write_text(FILE)
    assert [finding.status for finding in run(load(tmp_path))] == ["ok", "ok"]


def test_an_early_answer_is_tensors_too(tmp_path: Path) -> None:
    """Of a stage that is neither the first nor the last, and by a branch that ends."""
    service = """
import numpy as np
from engine import Done, Worker

class First(Worker):
    def forward(self, data):
        return {"x": data["x"], "kind": "plain" if data["x"].size else "empty"}

class Middle(Worker):
    def forward(self, data):
        return Done({"early": data["x"]}) if data["x"][0] < 0 else data

class Last(Worker):
    def forward(self, data):
        return {"late": data["x"]}
"""
    names = ("first", "middle", "last")
    toml = "".join(f'[[stage]]\nname = "{name}"\nworker = "early:{name.title()}"\n' for name in names)
    (tmp_path / "early.py").write_text(service)
    (tmp_path / "stages.toml").write_text(
        f'{toml}[[route]]\npath = "/v2/models/m/infer"\nprotocol = "oip"\n'
        'stages = ["first", { by = "kind", of = { plain = ["middle", "last"], empty = [] } }]'
    )
    with testing.local(tmp_path) as local:
        for value, name in (([-1.0], "early"), ([1.0], "late"), ([], "x")):
            x = {"name": "x", "shape": [len(value)], "datatype": "FP32", "data": value}
            asked = {"inputs": [x], "outputs": [{"name": name, "parameters": {"binary_data": True}}]}
            answer = local.post(asked)
            assert answer.status == 200, answer.text
            length = int(answer.headers["inference-header-content-length"])
            assert json.loads(answer.body[:length])["outputs"][0]["name"] == name
            assert answer.body[length:] == np.array(value, np.float32).tobytes()
