"""What pickle copies into its own bytes although it need not, or hands on as less than it was.

Pickle 5 hands numpy arrays out of band by itself. For the rest:

* ``bytes``, ``bytearray`` and ``memoryview``: the value itself, or one inside dicts, lists and tuples (these exact
  types, to DEPTH levels and WIDTH entries each: a look at more would cost those who have none). What arrives is
  ``bytes`` or ``bytearray``, copied once out of the buffer, and a ``memoryview`` without a copy.
* torch tensors on the CPU, dense and without gradient, wherever they stand. What arrives looks at the buffer without a
  copy.
* torch tensors on a GPU or any other device: where they are, if all who may receive them can read them there
  (:mod:`stages.near`), else by way of the CPU, for whoever receives one may have no such device, or be told to leave it
  alone. They arrive on the receiving stage's own ``device`` (:func:`receive_on`).
* numpy arrays that cannot be written to arrive as ones that can, like all others: where the flag comes from - an array
  made of a request's bytes, say - means nothing to the next stage, and whether it was kept would depend on the size.

Whoever unpickles hands in buffers that are the value's own - to be written to, and each the beginning of an object -
but for those of ``bytes`` and ``bytearray``, which are copied at once. :func:`borrowable` says which these are.

torch is never imported here unless a tensor arrives: who pickles one has it loaded.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final

from engine.core.arena import SHARED_MIN
from engine.errors import WorkerBroken
from stages.near import PutTensor, Reader, StandIn

DEPTH: Final = 4
WIDTH: Final = 64
PROTOCOL: Final = 5


def whole(value: Any) -> bytes:
    """The value as one pickle, whatever its size. Raises what pickling raises."""
    return dumps(value, apart_min=sys.maxsize)[0]


def dumps(value: Any, *, apart_min: int, near: PutTensor | None = None) -> tuple[bytes, list[memoryview]]:
    """The value's pickle, and apart from it the buffers of that many bytes and more, and the stand-ins for tensors that
    are ``near``. Raises what pickling raises."""
    if _is_flat(value):
        return pickle.dumps(value, protocol=PROTOCOL), []
    copied: list[pickle.PickleBuffer] = []
    value = _lift(value, DEPTH, apart_min, copied)
    if "torch" not in sys.modules:
        buffers = _Buffers(apart_min, copied)
        head = pickle.dumps(value, protocol=PROTOCOL, buffer_callback=buffers)
        if not buffers.frozen:
            return head + buffers.marks, buffers.apart
    buffers, out = _Buffers(apart_min, copied), io.BytesIO()
    pickler = _Pickler(out, protocol=PROTOCOL, buffer_callback=buffers)
    pickler.near = near
    pickler.dump(value)
    out.write(buffers.marks)
    return out.getvalue(), buffers.apart


_PLAIN: Final = frozenset({int, float, str, bool, type(None)})
_NESTED: Final = frozenset({dict, list, tuple})


def _is_flat(value: Any) -> bool:
    """Most values between stages: something plain, or a small container of nothing else. Pickle does all of it."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if (kind is dict or kind is list or kind is tuple) and len(value) <= WIDTH and _PLAIN.issuperset(map(type, value)):
        return kind is not dict or _PLAIN.issuperset(map(type, value.values()))
    return False


def are_plain(values: Sequence[Any]) -> bool:
    """Whether there is nothing in any of these values but what pickle does by itself: a look at all of them together,
    level by level, so that little is done for each."""
    level = values
    for _ in range(DEPTH):
        kinds = set(map(type, level))
        if kinds <= _PLAIN:
            return True
        if not kinds - _PLAIN <= _NESTED:
            return False
        nested = level if kinds <= _NESTED else [value for value in level if type(value) in _NESTED]
        if max(map(len, nested)) > WIDTH:
            return False
        level = [*chain.from_iterable(nested)]  # of dicts their keys
        if dict in kinds:
            dicts = nested if len(kinds & _NESTED) == 1 else [value for value in nested if type(value) is dict]
            level += chain.from_iterable(map(dict.values, dicts))
    return False


def borrowable(head: bytes | bytearray | memoryview, apart: int) -> list[bool]:
    """Of each of the buffers apart from a pickle, whether what is made of it does not look at it any more. That stands
    behind the pickle's end, where unpickling does not look."""
    return [mark == COPIED for mark in head[len(head) - apart :]]


COPIED: Final = 1


class _Buffers:
    """Asked about each buffer: True keeps it in the pickle."""

    def __init__(self, apart_min: int, copied: list[pickle.PickleBuffer]) -> None:
        self.apart: list[memoryview] = []
        self.marks = bytearray()
        self.frozen = False  # an array was met that needs our pickler
        self._min = apart_min
        self._copied = copied

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()  # contiguous: the only kind numpy hands out
        if type(raw.obj) is StandIn:
            self.apart.append(raw)
            self.marks.append(COPIED)
            return False
        if raw.readonly and _is_array(raw.obj):
            self.frozen = True
        if raw.nbytes < self._min:
            return True
        self.apart.append(raw)
        self.marks.append(COPIED if self._copied and buffer is self._copied[-1] else 0)
        return False


# --- bytes -----------------------------------------------------------------------------------------------------------


class _Lifted:
    """Stands for a buffer while it is pickled. ``copied`` is told of it, if it is one of those."""

    __slots__ = ("_copied", "_data", "_restore")

    def __init__(
        self,
        restore: Callable[[Any], Any],
        data: bytes | bytearray | memoryview,
        copied: list[pickle.PickleBuffer] | None = None,
    ) -> None:
        self._restore = restore
        self._data = data
        self._copied = copied

    def __reduce_ex__(self, _protocol: Any) -> tuple[Callable[[Any], Any], tuple[pickle.PickleBuffer]]:
        buffer = pickle.PickleBuffer(self._data)
        if self._copied is not None:
            self._copied.append(buffer)
        return self._restore, (buffer,)


def _lift(value: Any, depth: int, apart_min: int, copied: list[pickle.PickleBuffer]) -> Any:
    """The value, or a copy of its containers in which large buffers are replaced."""
    kind = type(value)
    if kind is bytes:
        return _Lifted(as_bytes, value, copied) if len(value) >= apart_min else value
    if kind is bytearray:
        return _Lifted(as_bytearray, value, copied) if len(value) >= apart_min else value
    if kind is memoryview:  # which pickle refuses, whatever its size
        return _Lifted(as_view, value if value.c_contiguous else memoryview(value.tobytes()))
    if depth and (kind is dict or kind is list or kind is tuple) and len(value) <= WIDTH:
        entries = value.values() if kind is dict else value
        if _PLAIN.issuperset(map(type, entries)):
            return value
        lifted = [_lift(entry, depth - 1, apart_min, copied) for entry in entries]
        if any(after is not before for after, before in zip(lifted, entries, strict=True)):
            return dict(zip(value, lifted, strict=True)) if kind is dict else kind(lifted)
    return value


def as_bytes(buffer: Any) -> bytes:
    return bytes(memoryview(buffer))  # a copy of bytes as well


def as_bytearray(buffer: Any) -> bytearray:
    return bytearray(buffer)


def as_view(buffer: Any) -> memoryview:
    return _writable(buffer)


def _writable(buffer: Any) -> memoryview:
    """What pickle was handed in, or what it made, of something that could not be written to."""
    if type(buffer) is bytes:  # out of the pickle, and perhaps one that Python keeps for all: b"" or b"a"
        return memoryview(bytearray(buffer))
    view = memoryview(buffer)
    return memoryview(view.obj)[: view.nbytes] if view.readonly else view


# --- arrays ----------------------------------------------------------------------------------------------------------


def _is_array(value: Any) -> bool:
    return "numpy" in sys.modules and type(value) is sys.modules["numpy"].ndarray


def as_array(build: Callable[..., Any], buffer: Any, *how: Any) -> Any:
    """``build`` and ``how`` are numpy's own."""
    return build(_writable(buffer), *how)


# --- tensors ---------------------------------------------------------------------------------------------------------


class _Pickler(pickle.Pickler):
    near: PutTensor | None = None

    def reducer_override(self, value: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is not None and type(value) is torch.Tensor:
            if _is_plain(value):
                return as_tensor, _bytes_of(value)
            if _is_elsewhere(value):
                if self.near is not None and (stand := self.near(value)) is not None:
                    dtype, shape = _kind_of(value)
                    return as_near_tensor, (pickle.PickleBuffer(stand), dtype, shape, value.requires_grad)
                return as_own_tensor, (*_bytes_of(_on_cpu(value)), value.requires_grad)
        if _is_array(value) and not value.flags.writeable:
            build, how, *rest = value.__reduce_ex__(PROTOCOL)
            if not rest and type(how[0]) is pickle.PickleBuffer:  # else it is copied, with its flags as new
                return as_array, (build, *how)
        return NotImplemented


def _is_plain(tensor: Any) -> bool:
    return (
        tensor.device.type == "cpu" and _is_dense(tensor) and not tensor.requires_grad and tensor.nbytes >= SHARED_MIN
    )


def _is_elsewhere(tensor: Any) -> bool:
    """On a device that has memory of its own; "meta" has none."""
    return tensor.device.type not in ("cpu", "meta") and _is_dense(tensor)


def _is_dense(tensor: Any) -> bool:
    return tensor.layout is sys.modules["torch"].strided and not tensor.is_quantized and not tensor.__dict__


def _on_cpu(tensor: Any) -> Any:
    """A copy, by way of memory that a GPU's driver can copy to directly: several times as fast."""
    torch = sys.modules["torch"]
    tensor = tensor.detach()
    if tensor.device.type != "cuda" or tensor.nbytes < SHARED_MIN:
        return tensor.cpu()
    try:
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    except RuntimeError:  # no such memory is left
        return tensor.cpu()
    return copy.copy_(tensor)


def _bytes_of(tensor: Any) -> tuple[pickle.PickleBuffer, str, tuple[int, ...]]:
    flat = tensor.resolve_conj().resolve_neg().contiguous().flatten()
    data = pickle.PickleBuffer(flat.view(sys.modules["torch"].uint8).numpy())
    return data, *_kind_of(tensor)


def _kind_of(tensor: Any) -> tuple[str, tuple[int, ...]]:
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


def as_tensor(buffer: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    """A tensor over the buffer."""
    import torch

    return torch.frombuffer(_writable(buffer), dtype=getattr(torch, dtype)).reshape(shape)


_own_device = "cpu"
_reader: Reader | None = None


def receive_on(device: str) -> None:
    """From now on tensors that were on a device of the former stage's arrive on this one."""
    global _own_device
    _own_device = device


def read_by(reader: Reader | None) -> None:
    """From now on this reads those that have stayed there."""
    global _reader
    _reader = reader


def as_own_tensor(buffer: Any, dtype: str, shape: tuple[int, ...], requires_grad: bool) -> Any:
    """A tensor with what is in the buffer, on this stage's device."""
    import torch

    if not memoryview(buffer).nbytes:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype))
    else:
        tensor = as_tensor(buffer, dtype, shape)
    return tensor.to(_own_device).requires_grad_(requires_grad)


def as_near_tensor(stand: Any, dtype: str, shape: tuple[int, ...], requires_grad: bool) -> Any:
    """The tensor that a stand-in stands for, on this stage's device."""
    import torch

    if _reader is None:
        raise WorkerBroken("a tensor on a GPU has come to a process that has none")
    return _reader.read(stand, getattr(torch, dtype), shape).to(_own_device).requires_grad_(requires_grad)
