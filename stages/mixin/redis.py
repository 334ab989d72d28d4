"""Values between stages by way of a Redis server, for stages that share no memory: the extra ``redis``.

The value is stored under a fresh key, and the key is what travels; so both stages need the mixin.

A value is *not* deleted when it is read. The worker that read it may die, and then another one must find it: a request
is not lost with a worker. Instead every key expires when its request's deadline has passed, when nobody can want it
any more, so a crash leaves nothing behind either. Redis must hold what arrives within one deadline.
"""

from __future__ import annotations

import os
import uuid
from math import inf
from typing import Any, Final

from engine.errors import ServerError
from stages.base import Worker

__all__ = ["RedisShmIPCMixin"]

URL: Final = "STAGELINE_REDIS_URL"  # environment: what set_redis_url keeps, so that worker processes inherit it
MARGIN_S: Final = 1.0  # past the deadline, for an answer that is just being given


class RedisShmIPCMixin(Worker):
    """``class Encode(RedisShmIPCMixin, Worker)``, in both stages, and :meth:`set_redis_url` or the environment
    variable STAGELINE_REDIS_URL.

    Before another ``...IPCMixin`` it stores what that one made instead of a pickle.
    """

    redis_prefix: str = "stageline:ipc:"
    """What every key begins with."""
    redis_ttl_s: float = 600.0
    """Seconds that a value without a deadline is kept, and the most that any is."""

    _redis: Any = None  # redis.Redis, whose module is loaded when it is first needed

    @classmethod
    def set_redis_url(cls, url: str) -> None:
        """Where the server is: ``redis://HOST:PORT/0`` or ``unix:///PATH``, for this process and those it starts."""
        os.environ[URL] = url

    def serialize_ipc(self, data: Any) -> bytes:
        """Store the value; returns its key. Raises redis.RedisError when the server does not take it."""
        key = f"{self.redis_prefix}{uuid.uuid4().hex}".encode()
        self._client().set(key, super().serialize_ipc(data), px=self._lifetime_ms())
        return key

    def deserialize_ipc(self, data: bytes) -> Any:
        """The value of a key. Raises ServerError when it is gone, and redis.RedisError without the server."""
        value = self._client().get(bytes(data))
        if value is None:
            raise ServerError("the value from the previous stage is not in Redis any more")
        return super().deserialize_ipc(value)

    def _lifetime_ms(self) -> int:
        remaining = self.context().remaining()
        lifetime_s = self.redis_ttl_s if remaining == inf else min(self.redis_ttl_s, remaining + MARGIN_S)
        return max(1, int(lifetime_s * 1000))

    def _client(self) -> Any:
        if self._redis is None:
            import redis

            url = os.environ.get(URL)
            if not url:
                raise RuntimeError(f"RedisShmIPCMixin.set_redis_url(...) was not called, and {URL} is not set")
            self._redis = redis.from_url(url)
        return self._redis
