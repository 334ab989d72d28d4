"""Where a service written for Mosec finds ``Runtime``; it is defined in :mod:`engine.server`."""

from engine.server import Runtime

__all__ = ["Runtime"]
