"""Where a service written for Mosec finds its base classes; they are defined in :mod:`stages`."""

from stages import SSEWorker, Worker

__all__ = ["SSEWorker", "Worker"]
