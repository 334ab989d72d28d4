"""The workers' side: the class users write, and the processes that run it. The map:

==================  ==================================================================================================
``base``            :class:`Worker`, the class users derive from; usable without any server
``stream``          :class:`SSEWorker` and :class:`StreamWorker`, whose answers leave while ``forward`` runs
``plainjson``       JSON, as lenient as the standard library's
``bases``           what a subclass of a plain type is to a format
``mixin``           other formats than JSON and pickle, checked types, Redis between stages
``form``            forms and uploads out of the bytes of a request
``schema``          types out of ``forward``'s annotations, and a stage's description for OpenAPI
``models``          pydantic, where a service uses it
``ways``            where results go that do not simply go on: Done, Skip, the branches of a route
``spread``          results that go on in parts, and values whose parts have come together
``memo``            by what the cache of the next stage knows a value
``context``         what ``Worker.context(i)`` tells about one request
``compute``         one batch in, one outcome per item out: no sockets, no processes (the rules of failure live here)
``ipc``             how a value travels from one stage to the next: pickle 5 with its large buffers out of band
``columns``         the same of small arrays, as their bytes: a whole batch of them in a few calls
``tensors``         arrays as the Open Inference Protocol has them, and back
``oip``             what a class takes and gives to clients of that protocol
``openipc``         the same where others could reach the link: MessagePack and arrays, never pickle
``buffers``         what pickle would copy, or hand on as less than it was: large ``bytes``, tensors, read-only arrays
``shm``             shared memory as a worker uses it; what user code gets is its own
``near``            tensors on a GPU that stay there on their way to the next stage
``cuda``            a piece of a GPU's memory that several processes can map
``contract``        mistakes in a class that would fail every request, found before its object is made
``costing``         what a value costs, where its class says so
``blame``           what such a mistake, and any exception of user code at a start, looks like to its author
``trial``           the first stage's example as a request to try
``sizes``           padding to the sizes of batches that are allowed
``build``           making a worker object and calling it on its examples, the same way in a process and in a dry run
``feeding``         what a stage without an example is given: what those before it return, as it would arrive
``warming``         what is computed before a worker is ready: examples, then other sizes of batches
``device``          how much memory is in use, of the machine and of its GPUs, and whether these still answer
``verdict``         what an exception says about its process: nothing, that memory is short, that it is of no more use
``watchdog``        ends a ``forward`` that takes too long, also when it never returns to Python
``runtime``         the worker process: control thread, lanes, main loop
``local``           whole routes in one process without sockets
``dryrun``          ``engine check``
``profiling``       how long a stage's batches take on this machine, for ``engine plan``
==================  ==================================================================================================

Imports go downwards: ``runtime`` and ``local`` -> ``warming`` -> ``build`` -> ``compute``, ``watchdog`` -> ``stream``
-> ``base`` -> ``context``, ``ipc`` -> ``ways``. Only ``runtime`` knows sockets. torch is looked at only when user
code has imported it.
"""

from stages.base import Worker
from stages.stream import SSEWorker, StreamWorker

__all__ = ["SSEWorker", "StreamWorker", "Worker"]
