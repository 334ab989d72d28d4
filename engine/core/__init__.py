"""The rules, as pure values and functions: no socket, thread, clock, file or process is touched in this package.

    arena      shared memory as values
    messages   every message of the protocol          wire       parcels: bytes in, messages out
    about      what a stage says of itself, for OpenAPI
    routing    which stage comes next                 batching   when does a batch leave, and why
    stage      one stage: queue, workers, in flight   front      admission, answers, duplicates, deadlines
    backoff    when to restart what died

Machines (``stage``, ``front``) take events and ``now`` and append *actions* to a list; the threads in
:mod:`engine.broker` carry the actions out.
"""
