"""The workers' side: the class users write, and the processes that run it. The map:

==================  ==================================================================================================
``base``            :class:`Worker` and :class:`SSEWorker`, the classes users derive from; usable without any server
``mixin``           other formats than JSON for ``deserialize`` and ``serialize``
``context``         what ``Worker.context(i)`` tells about one request
``compute``         one batch in, one outcome per item out: no sockets, no processes (the rules of failure live here)
``ipc``             how a value travels from one stage to the next: pickle 5 with its large buffers out of band
``build``           making and warming up a worker object, the same way in a process and in a dry run
``device``          which device "auto" means here, and how much memory is in use
``watchdog``        ends a ``forward`` that takes too long, also when it never returns to Python
``runtime``         the worker process: control thread, lanes, main loop
``local``           whole routes in one process without sockets
``dryrun``          ``engine check``
==================  ==================================================================================================

Imports go downwards: ``runtime`` and ``local`` -> ``build``, ``compute``, ``watchdog`` -> ``base`` -> ``context``,
``ipc``. Only ``runtime`` knows sockets. torch is looked at only when user code has imported it.
"""

from stages.base import SSEWorker, Worker

__all__ = ["SSEWorker", "Worker"]
