"""The server: gunicorn, behind a fence. No other place imports it, or knows what it calls things.

    names        which of gunicorn's private names are relied upon, where and why; looked for at start
    options      gunicorn's settings
    application  what gunicorn runs: configuration in the master; the application and its client in a worker process
    master       supervises the worker processes
    process      a worker process: meets the broker, listens, drains
    connection   one client connection, HTTP/1.1 or HTTP/2
    http2        the latter's frames: by turns, within their budget

From outside come the listening sockets, a ``connect`` that makes the client, and a ``booted`` to be told; the way back
from a connection of :mod:`frontend.lean` to one of gunicorn's is the ``hand_over`` of its
:class:`frontend.shared.Shared`.
"""
