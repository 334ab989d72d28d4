"""Arrays between stages in NumBin, which is not pickle: the extra ``numbin``.

Both stages need the mixin: the one that gives and the one that takes.
"""

from __future__ import annotations

from typing import Any

from engine.errors import DecodingError, EncodingError

__all__ = ["NumBinIPCMixin"]


class NumBinIPCMixin:
    """One numpy array per item; nothing else is taken."""

    def serialize_ipc(self, data: Any) -> bytes:
        """A numpy array as NumBin. Raises EncodingError for anything else."""
        import struct

        import numbin

        try:
            packed: bytes = numbin.dumps(data)
        except struct.error as error:
            raise EncodingError(
                f"NumBin takes arrays of fewer than 65,536 numbers an axis, not {data.shape}"
            ) from error
        # It asks for shape and type without looking first.
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EncodingError(f"NumBin takes numpy arrays of numbers, not {type(data).__name__}") from error
        return packed

    def deserialize_ipc(self, data: bytes) -> Any:
        """Inverse of the previous stage's :meth:`serialize_ipc`. Raises DecodingError when that did not use NumBin."""
        import struct

        import numbin

        try:
            found = numbin.loads(data)
            return found if found.flags.writeable else found.copy()  # a view of the bytes, which are not to be changed
        except (struct.error, KeyError, IndexError, TypeError, ValueError) as error:
            raise DecodingError(f"the previous stage did not send NumBin: {error}") from error
