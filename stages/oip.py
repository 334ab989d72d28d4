"""What a class takes and gives to clients of the Open Inference Protocol, and their requests and answers as values.

A value is one request, its first dimension as the client sent it; requests are batched as on any route. What
``forward`` gets goes by its annotation, for one request:

* a ``TypedDict``, dataclass, msgspec ``Struct`` or pydantic model: a field for each input, an array (numpy's, or
  torch's), a list, or a single text or number;
* ``dict``, or nothing: arrays by name;
* anything else: what ``deserialize_tensors`` of the class makes of those arrays.

The same of results, with ``serialize_tensors``. Names, datatypes and shapes are those of ``input_tensors`` and
``output_tensors`` where the class has them, else those of the annotation, else those of the class's example.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

import msgspec

from engine.core import oip
from engine.core.messages import Flow
from engine.core.oip import Asked, Malformed
from engine.core.oip import Tensor as Described
from engine.core.wire import Buffer
from engine.errors import ClientError, EncodingError, StartError, ValidationError
from stages import models, schema, tensors
from stages.base import Worker
from stages.build import examples
from stages.stream import flow_of
from stages.tensors import BYTES, DTYPES, Array, Tensor, array_of, datatype_of, from_bytes, from_json, misfit, shown

INPUTS_MAX: Final = 1024  # of one request

_SCALARS: Final[dict[Any, str]] = {str: BYTES, bytes: BYTES, bool: "BOOL", int: "INT64", float: "FP64"}


class _Input(msgspec.Struct):
    """An input as it stands in a request."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None  # whatever a client says
    data: msgspec.Raw = msgspec.Raw(b"")  # nothing: it has none


class _Request(msgspec.Struct):
    inputs: Annotated[list[_Input], msgspec.Meta(max_length=INPUTS_MAX)]


_decoder = msgspec.json.Decoder(_Request)


@dataclass(frozen=True)
class Field:
    """One input or output. ``tensor`` None: any. ``convert``: an array to what the class has it as; None: as it is."""

    name: str
    tensor: Tensor | None = None
    convert: Callable[[Array], Any] | None = None
    optional: bool = False

    def described(self) -> Described | None:
        if self.tensor is None:
            return None
        shape = [-1] if self.tensor.shape is None else [*self.tensor.shape]
        return Described(self.name, self.tensor.datatype, shape, self.optional)


@dataclass(frozen=True)
class Side:
    """All inputs, or all outputs. ``fields`` None: any. ``make``: of values by name what ``forward`` gets."""

    fields: Mapping[str, Field] | None
    make: Callable[[dict[str, Any]], Any] = dict

    def described(self) -> list[Described] | None:
        """For the model's metadata; None where nothing is known."""
        if self.fields is None:
            return None
        return [one for field in self.fields.values() if (one := field.described()) is not None]


class Tensors:
    """Requests of the protocol as values for ``forward``, and its results as answers, of one worker object."""

    def __init__(self, worker: Worker, *, first: bool, last: bool) -> None:
        """Raises StartError for a class of which it is not known what it takes, or gives. ``first``, ``last``: it is
        that on a route of the protocol."""
        try:
            import numpy  # noqa: F401  # numpy is no requirement of ours
        except ImportError as error:
            raise StartError(f'stage {worker.stage} is on a route with protocol = "oip", which needs numpy') from error
        if last and flow_of(worker) is not Flow.WHOLE:
            raise StartError(
                f"stage {worker.stage} streams its answers, which the Open Inference Protocol does not know"
            )
        self._worker = worker
        self.own_decode = _is_own(worker, "deserialize_tensors")
        self.own_encode = _is_own(worker, "serialize_tensors")
        self.first, self.last = first, last
        where = f"{type(worker).__qualname__} of stage {worker.stage}"
        self.inputs = _inputs(worker, where, own=self.own_decode) if first else Side(None)
        # Any stage may answer before the last one does.
        self.outputs = _outputs(worker, where, own=self.own_encode or not last)

    # --- in -----------------------------------------------------------------------------------------------------------

    def decode(self, body: Buffer, asked: Asked) -> Any:
        """The value of a request. Raises ClientError, and whatever the user's code raises."""
        try:
            found = self._raw(body) if not asked.length else self._read(memoryview(body), asked.length)
            if self.last:
                self._check_outputs(asked)
        except Malformed as error:
            raise ClientError(str(error)) from None
        if self.own_decode:
            return self._worker.deserialize_tensors(found)
        known = self.inputs.fields
        if known is not None:
            for name, array in found.items():
                if (convert := known[name].convert) is not None:
                    found[name] = _converted(convert, name, array)
        return self.inputs.make(found)

    def _read(self, body: memoryview, length: int) -> dict[str, Array]:
        try:
            inputs = _decoder.decode(body[:length]).inputs
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Malformed(f"the inputs cannot be read: {error}") from None
        found: dict[str, Array] = {}
        at = length
        for one in inputs:
            if one.name in found:
                raise Malformed(f"input {shown(one.name)} is there twice")
            try:
                found[one.name], at = self._array(one, body, at)
            except Malformed as error:
                raise Malformed(f"input {shown(one.name)}: {error}") from None
        if at != len(body):
            raise Malformed(f"{len(body) - at} bytes are left behind those of the inputs")
        known = self.inputs.fields or {}
        if missing := [name for name, field in known.items() if name not in found and not field.optional]:
            raise Malformed(f"the input {', '.join(map(repr, missing))} is missing")
        return found

    def _array(self, one: _Input, body: memoryview, at: int) -> tuple[Array, int]:
        """The array of an input, and where the bytes of the next one begin."""
        known = self.inputs.fields
        if known is not None and one.name not in known:
            raise Malformed(f"there is no such input: it takes {', '.join(map(repr, known)) or 'none'}")
        if one.datatype not in DTYPES and one.datatype != BYTES:
            raise Malformed(f"{shown(one.datatype)} is no datatype")
        tensor = known[one.name].tensor if known is not None else None
        if tensor is not None and (why := misfit(tensor, one.datatype, one.shape)):
            raise Malformed(why)
        parameters = one.parameters or {}
        if any(name.startswith("shared_memory") for name in parameters):
            raise Malformed("shared memory is not served")
        size, data = parameters.get("binary_data_size"), memoryview(one.data)
        if size is None:
            if not data:
                raise Malformed("it has no data")
            return from_json(data, one.datatype, one.shape), at
        if data:
            raise Malformed("it has data in its JSON and behind it")
        if type(size) is not int or not 0 <= size <= len(body) - at:
            raise Malformed(f"binary_data_size takes the number of its bytes, of which {len(body) - at} are left")
        return from_bytes(body[at : at + size], one.datatype, one.shape), at + size

    def _raw(self, body: Buffer) -> dict[str, Array]:
        """A body that is the one input, as bytes: what varies in its shape follows from how many there are."""
        known = self.inputs.fields
        (field,) = known.values() if known is not None and len(known) == 1 else (None,)
        tensor = field.tensor if field is not None else None
        if field is None or tensor is None or tensor.shape is None:
            raise Malformed("a body without JSON is for a model with one input of a known datatype and shape")
        shape, data = [*tensor.shape], memoryview(body)
        if shape.count(-1) > 1:
            raise Malformed("a body without JSON is for a model of whose input one dimension varies")
        if -1 in shape:
            if tensor.datatype == BYTES:
                shape[shape.index(-1)] = 1
            else:
                import numpy as np

                row = np.dtype(DTYPES[tensor.datatype]).itemsize * abs(math.prod(shape))
                shape[shape.index(-1)] = len(data) // row if row else 0
        return {field.name: from_bytes(data, tensor.datatype, shape)}

    def _check_outputs(self, asked: Asked) -> None:
        known = self.outputs.fields
        if known is None or asked.outputs is None:
            return
        for name, _ in asked.outputs:
            if name not in known:
                raise Malformed(f"there is no output {shown(name)}: it gives {', '.join(map(repr, known))}")

    # --- out ----------------------------------------------------------------------------------------------------------

    def encode(self, result: Any, asked: Asked) -> tuple[bytes, dict[str, str]]:
        """The answer of a result, and the headers that tell how it is to be read, its content type among them.

        Raises EncodingError, ClientError, and whatever the user's code raises.
        """
        given = self._given(result)
        known = self.outputs.fields
        wanted = asked.outputs or [(name, asked.binary) for name in given]
        outputs: list[dict[str, Any]] = []
        behind: list[Any] = []
        for name, binary in wanted:
            if name not in given:
                raise ClientError(f"there is no output {shown(name)}: it gives {', '.join(map(repr, given))}")
            field = known.get(name) if known is not None else None
            array, datatype = array_of(given[name], name, field.tensor if field is not None else None)
            output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": array.shape}
            if binary:
                data = tensors.to_bytes(array, datatype, name)
                output["parameters"] = {"binary_data_size": len(data)}
                behind.append(data)
            else:
                output["data"] = tensors.to_json(array, datatype, name)
            outputs.append(output)
        answer: dict[str, Any] = {"model_name": asked.model, "model_version": oip.VERSION}
        if asked.id:
            answer["id"] = asked.id
        head = msgspec.json.encode({**answer, "outputs": outputs})
        if not behind:
            return head, {"content-type": "application/json"}
        return b"".join([head, *behind]), {"content-type": "application/octet-stream", oip.LENGTH: str(len(head))}

    def _given(self, result: Any) -> dict[str, Any]:
        """The outputs of a result, by name."""
        if self.own_encode:
            given = self._worker.serialize_tensors(result)
            if not isinstance(given, Mapping):
                raise EncodingError(f"serialize_tensors must return arrays by name, not {type(given).__name__}")
        elif isinstance(result, Mapping):
            given = result
        else:
            known = self.outputs.fields
            if known is not None and len(known) == 1 and not all(hasattr(result, name) for name in known):
                return {next(iter(known)): result}  # which is the one output
            names = _names(type(result)) if known is None else [*known]
            if not names or not all(hasattr(result, name) for name in names):
                raise EncodingError(f"a {type(result).__name__} cannot be outputs: return arrays by name")
            return {name: getattr(result, name) for name in names}
        known = self.outputs.fields
        if known is None:
            return {str(name): value for name, value in given.items()}
        if missing := [name for name in known if name not in given]:
            raise EncodingError(f"the result lacks the output {', '.join(map(repr, missing))}")
        return {name: given[name] for name in known}

    def example_body(self, example: Any) -> bytes | None:
        """A request like an example of the class, in JSON; None where that cannot be said."""
        known = self.inputs.fields
        if self.own_decode or (known is None and not isinstance(example, Mapping)):
            return None
        given = example if isinstance(example, Mapping) else None
        try:
            inputs = []
            for name in known if known is not None else example:
                one = known[name] if known is not None else Field(name)
                if given is None and not hasattr(example, name) and len(known or ()) == 1:
                    value = example
                else:
                    value = given[name] if given is not None else getattr(example, name)
                array, datatype = array_of(value, name, one.tensor)
                data = tensors.to_json(array, datatype, name)
                inputs.append({"name": name, "datatype": datatype, "shape": array.shape, "data": data})
            body = msgspec.json.encode({"inputs": inputs})
            self.decode(body, Asked("", len(body)))
        except Exception:  # nothing that is certain; of the user's class, whatever it says of that
            return None
        return body


# --- what a class says -----------------------------------------------------------------------------------------------


def _inputs(worker: Worker, where: str, *, own: bool) -> Side:
    declared = _declared(worker.input_tensors, f"input_tensors of {where}")
    if own:
        if declared is None:
            raise StartError(f"{where} has deserialize_tensors, and no input_tensors: say there what it takes")
        return Side(declared)
    kind = _kind(schema.request_type, worker)
    if _is_open(kind):
        return Side(declared if declared is not None else _of_example(worker))
    try:
        found = _fields(kind)
    except (TypeError, NameError) as error:
        if declared is None or len(declared) != 1:
            raise StartError(
                f"{where} takes {_shown(kind)}, which cannot be made of tensors ({error}): define "
                "deserialize_tensors and input_tensors"
            ) from error
        (field,) = declared.values()
        try:
            alone = _field(field.name, kind)
        except TypeError:
            raise StartError(f"{where} takes {_shown(kind)}: define deserialize_tensors") from error
        only = Field(field.name, field.tensor, alone.convert)
        return Side({only.name: only}, lambda values: next(iter(values.values())))
    if declared is not None:
        if stray := sorted(declared.keys() - found.keys()):
            raise StartError(f"input_tensors of {where} name {', '.join(stray)}, which {_shown(kind)} has not")
        found = {
            name: Field(name, declared[name].tensor if name in declared else one.tensor, one.convert, one.optional)
            for name, one in found.items()
        }
    return Side(found, dict if _is_typed_dict(kind) else _maker(kind))


def _outputs(worker: Worker, where: str, *, own: bool) -> Side:
    """``own``: what it gives is not to be read off its annotation."""
    declared = _declared(worker.output_tensors, f"output_tensors of {where}")
    if declared is not None or own:
        return Side(declared)
    kind = _kind(schema.response_type, worker)
    if _is_open(kind):
        return Side(None)
    try:
        return Side(_fields(kind))
    except (TypeError, NameError) as error:
        raise StartError(
            f"{where} gives {_shown(kind)}, which cannot be made into tensors ({error}): define "
            "serialize_tensors, or name its outputs in output_tensors"
        ) from error


def _kind(type_of: Callable[[Worker], Any], worker: Worker) -> Any:
    try:
        kind = type_of(worker)
    except (NameError, TypeError, AttributeError, SyntaxError):  # it says what is wrong where schemas are made
        return Any
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _declared(given: Any, where: str) -> dict[str, Field] | None:
    if not given:
        return None
    if not isinstance(given, Mapping) or not all(
        isinstance(name, str) and isinstance(one, Tensor) for name, one in given.items()
    ):
        raise StartError(f'{where}: a Tensor by name, like {{"text": Tensor("BYTES", [-1])}}')
    return {name: Field(name, one) for name, one in given.items()}


def _is_open(kind: Any) -> bool:
    """Whether a type says nothing of names."""
    return kind in (Any, object, inspect.Parameter.empty) or (get_origin(kind) or kind) in (dict, Mapping)


def _names(kind: type) -> list[str]:
    try:
        return [*_fields(kind)]
    except (TypeError, NameError):
        return []


def _fields(kind: Any) -> dict[str, Field]:
    """The fields of a type that has some. Raises TypeError for another, or where one of them is no tensor."""
    if not isinstance(kind, type) or not (
        _is_typed_dict(kind) or is_dataclass(kind) or issubclass(kind, msgspec.Struct) or models.is_model(kind)
    ):
        raise TypeError("it has no fields")
    optional = _defaults(kind)
    hints = get_type_hints(kind, include_extras=True)
    names = [one.name for one in fields(kind)] if is_dataclass(kind) else None
    return {
        name: _field(name, hint, optional=name in optional)
        for name, hint in hints.items()
        if names is None or name in names
    }


def _is_typed_dict(kind: Any) -> bool:
    """Of typing or of typing_extensions, which before Python 3.11 are two."""
    return isinstance(kind, type) and issubclass(kind, dict) and hasattr(kind, "__total__")


def _defaults(kind: Any) -> frozenset[str]:
    """Fields that may be left out."""
    if _is_typed_dict(kind):
        return frozenset(kind.__optional_keys__)
    if is_dataclass(kind):
        return frozenset(
            one.name for one in fields(kind) if one.default is not MISSING or one.default_factory is not MISSING
        )
    if issubclass(kind, msgspec.Struct):
        return frozenset(one.name for one in msgspec.structs.fields(kind) if not one.required)
    return frozenset(name for name, one in kind.model_fields.items() if not one.is_required())


def _field(name: str, hint: Any, *, optional: bool = False) -> Field:
    """One field. Raises TypeError where its type is none of a tensor's."""
    tensor = None
    origin = get_origin(hint)
    # Of a TypedDict, whose own word on that does not know of annotations that are text.
    qualifier = getattr(origin, "__name__", "") or getattr(origin, "_name", "")
    if qualifier in ("NotRequired", "Required", "ReadOnly"):
        optional = qualifier == "NotRequired" or (qualifier == "ReadOnly" and optional)
        return _field(name, get_args(hint)[0], optional=optional)
    if origin is Annotated:
        tensor = next((one for one in get_args(hint)[1:] if isinstance(one, Tensor)), None)
        hint = get_args(hint)[0]
        origin = get_origin(hint)
    if origin in (Union, UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        if len(parts) != 1:
            raise TypeError(f"{name} is one of several types")
        return Field(name, tensor or _field(name, parts[0]).tensor, _field(name, parts[0]).convert, optional)
    kind = origin or hint
    if _named(kind, "numpy", "ndarray"):
        return Field(name, tensor or _of_dtype(get_args(hint)), None, optional)
    if _named(kind, "torch", "Tensor"):
        return Field(name, tensor, _to_torch, optional)
    depth = 0
    while get_origin(hint) in (list, Sequence):
        (hint,) = get_args(hint)
        depth += 1
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if hint not in _SCALARS:
        raise TypeError(f"{name} is {_shown(hint)}")
    convert = _texts if hint is str else None
    return Field(
        name,
        tensor or Tensor(_SCALARS[hint], (-1,) * depth if depth else (1,)),
        (lambda array: _listed(array, convert)) if depth else (lambda array: _alone(array, convert)),
        optional,
    )


def _named(kind: Any, module: str, name: str) -> bool:
    """Whether a class is this one: of a package that is not imported for it."""
    return getattr(kind, "__name__", "") == name and str(getattr(kind, "__module__", "")).partition(".")[0] == module


def _of_dtype(arguments: Sequence[Any]) -> Tensor | None:
    """``numpy.ndarray[shape, dtype[float32]]``, or ``NDArray[float32]``."""
    if len(arguments) != 2 or not get_args(arguments[1]):
        return None
    import numpy as np

    try:
        datatype = datatype_of(np.dtype(get_args(arguments[1])[0]))
    except TypeError:  # a variable, or a class of several types
        return None
    return Tensor(datatype) if datatype is not None else None


def _to_torch(array: Array) -> Any:
    import torch

    return torch.from_numpy(array)


def _texts(value: Any) -> Any:
    return [_texts(one) for one in value] if isinstance(value, list) else value.decode()


def _listed(array: Array, convert: Callable[[Any], Any] | None) -> Any:
    listed = array.tolist()
    return listed if convert is None else convert(listed)


def _alone(array: Array, convert: Callable[[Any], Any] | None) -> Any:
    if array.size != 1:
        raise TypeError(f"it has to be one value, and has {array.size}")
    return _listed(array.reshape(1), convert)[0]


def _converted(convert: Callable[[Array], Any], name: str, array: Array) -> Any:
    try:
        return convert(array)
    except UnicodeDecodeError:
        raise ClientError(f"input {name!r}: it has to be text, in UTF-8") from None
    except TypeError as error:
        raise ClientError(f"input {name!r}: {error}") from None  # torch has no such type


def _maker(kind: Any) -> Callable[[dict[str, Any]], Any]:
    """What makes a value of a class out of its fields. What that says of them is the client's affair where pydantic or
    msgspec says it."""

    def make(values: dict[str, Any]) -> Any:
        try:
            return kind(**values)
        except ValueError as error:
            if models.is_model(kind):
                raise ValidationError(" ".join(str(error).split())) from error
            raise

    return make


def _of_example(worker: Worker) -> dict[str, Field] | None:
    """What the first example has, where it is arrays by name; of their shapes how many dimensions they have."""
    try:
        found = examples(worker)
        value = found[0] if worker.max_batch_size == 1 else found[0][0]
        if not isinstance(value, Mapping) or not value:
            return None
        fields: dict[str, Field] = {}
        for name, one in value.items():
            array, datatype = array_of(one, str(name), None)
            fields[str(name)] = Field(str(name), Tensor(datatype, (-1,) * array.ndim))
        return fields
    except Exception:  # of the user's class, whatever it is
        return None


def _shown(kind: Any) -> str:
    return getattr(kind, "__qualname__", None) or str(kind)


def _is_own(worker: Worker, method: str) -> bool:
    return method in vars(worker) or getattr(type(worker), method) is not getattr(Worker, method)
