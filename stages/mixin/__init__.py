"""Other formats than JSON and pickle: put a mixin before Worker, ``class Encode(MsgpackMixin, Worker)``.

    msgpack    MsgpackMixin: requests and answers in MessagePack, unchecked
    typed      TypedMsgPackMixin, TypedJSONMixin: requests checked against the annotation of ``forward``
    form       FormMixin: uploads and other forms, likewise checked
    numbin     NumBinIPCMixin: arrays between stages in NumBin
    redis      RedisShmIPCMixin: values between stages by way of a Redis server

Each loads its third-party package when it is first used, not when it is imported.
"""

from __future__ import annotations

from typing import NoReturn

from stages.mixin.form import File, FormMixin
from stages.mixin.msgpack import MsgpackMixin
from stages.mixin.numbin import NumBinIPCMixin
from stages.mixin.redis import RedisShmIPCMixin
from stages.mixin.typed import TypedJSONMixin, TypedMsgPackMixin

__all__ = [
    "File",
    "FormMixin",
    "MsgpackMixin",
    "NumBinIPCMixin",
    "RedisShmIPCMixin",
    "TypedJSONMixin",
    "TypedMsgPackMixin",
]


def __getattr__(name: str) -> NoReturn:
    # A name that services moved from Mosec may import; a class that fails on its first request would tell them later.
    if name == "PlasmaShmIPCMixin":
        raise ImportError(
            "PlasmaShmIPCMixin is not available: Plasma was removed from pyarrow. Remove the mixin: on one host, "
            "arrays and bytes of 64 KiB and more go from stage to stage through shared memory without one"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
