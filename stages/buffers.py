"""What pickle copies into its own bytes although it need not: large ``bytes`` and torch tensors, lifted out as buffers.

Pickle 5 hands numpy arrays out of band by itself. For the rest:

* ``bytes``, ``bytearray`` and ``memoryview``: the value itself, or one inside dicts, lists and tuples (these exact
  types, to DEPTH levels and WIDTH entries each: a look at more would cost those who have none). What arrives is
  ``bytes`` or ``bytearray``, copied once out of the buffer, and a read-only ``memoryview`` without a copy.
* torch tensors on the CPU, dense and without gradient, wherever they stand. What arrives looks at the buffer without a
  copy. torch knows no read-only tensors, and a write into read-only memory would kill the process; so a tensor in
  shared memory gets a mapping of its own in which the kernel copies a page when it is written to.

torch is never imported here unless a tensor arrives: who pickles one has it loaded.
"""

from __future__ import annotations

import io
import pickle
import sys
import warnings
from collections.abc import Callable
from typing import Any, Final

from engine.core.arena import SHARED_MIN, UNIT
from engine.memory import Mapping

DEPTH: Final = 4
WIDTH: Final = 64
PROTOCOL: Final = 5


def dumps(value: Any, keep_in_band: Callable[[pickle.PickleBuffer], bool]) -> bytes:
    """The value's pickle; ``keep_in_band`` is asked about each buffer. Raises what pickling raises."""
    value = _lift(value, DEPTH)
    if "torch" not in sys.modules:
        return pickle.dumps(value, protocol=PROTOCOL, buffer_callback=keep_in_band)
    out = io.BytesIO()
    _Pickler(out, protocol=PROTOCOL, buffer_callback=keep_in_band).dump(value)
    return out.getvalue()


# --- bytes -----------------------------------------------------------------------------------------------------------


class _Lifted:
    """Stands for a buffer while it is pickled."""

    __slots__ = ("_data", "_restore")

    def __init__(self, restore: Callable[[Any], Any], data: bytes | bytearray | memoryview) -> None:
        self._restore = restore
        self._data = data

    def __reduce_ex__(self, _protocol: Any) -> tuple[Callable[[Any], Any], tuple[pickle.PickleBuffer]]:
        return self._restore, (pickle.PickleBuffer(self._data),)


def _lift(value: Any, depth: int) -> Any:
    """The value, or a copy of its containers in which large buffers are replaced."""
    kind = type(value)
    if kind is bytes:
        return _Lifted(as_bytes, value) if len(value) >= SHARED_MIN else value
    if kind is bytearray:
        return _Lifted(as_bytearray, value) if len(value) >= SHARED_MIN else value
    if kind is memoryview:  # which pickle refuses, whatever its size
        return _Lifted(as_view, value if value.c_contiguous else memoryview(value.tobytes()))
    if depth and (kind is dict or kind is list or kind is tuple) and len(value) <= WIDTH:
        entries = value.values() if kind is dict else value
        lifted = [_lift(entry, depth - 1) for entry in entries]
        if any(after is not before for after, before in zip(lifted, entries, strict=True)):
            return dict(zip(value, lifted, strict=True)) if kind is dict else kind(lifted)
    return value


def as_bytes(buffer: Any) -> bytes:
    return buffer if type(buffer) is bytes else bytes(buffer)


def as_bytearray(buffer: Any) -> bytearray:
    return buffer if type(buffer) is bytearray else bytearray(buffer)


def as_view(buffer: Any) -> memoryview:
    return memoryview(buffer).toreadonly()


# --- tensors ---------------------------------------------------------------------------------------------------------


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if type(value) is sys.modules["torch"].Tensor and _is_plain(value):
            flat = value.resolve_conj().resolve_neg().contiguous().flatten()
            data = pickle.PickleBuffer(flat.view(sys.modules["torch"].uint8).numpy())
            return as_tensor, (data, str(value.dtype).removeprefix("torch."), tuple(value.shape))
        return NotImplemented


def _is_plain(tensor: Any) -> bool:
    return (
        tensor.device.type == "cpu"
        and tensor.layout is sys.modules["torch"].strided
        and not tensor.requires_grad
        and not tensor.is_quantized
        and tensor.nbytes >= SHARED_MIN
        and not tensor.__dict__
    )


def as_tensor(buffer: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    """A tensor over the buffer. What is in band, or came through a socket, is nobody else's: no copy either."""
    import torch

    kind = getattr(torch, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about buffers that are not writable: see the module
        view = memoryview(buffer)
        if isinstance(view.obj, Mapping):
            base = torch.frombuffer(view.obj, dtype=torch.uint8, count=1).data_ptr()
            offset = torch.frombuffer(view, dtype=torch.uint8, count=1).data_ptr() - base
            assert offset % UNIT == 0  # of blocks, and so of pages
            view = view.obj.private(offset, view.nbytes)
        return torch.frombuffer(view, dtype=kind).reshape(shape)
