"""The broker process: parts around the pure machines of :mod:`engine.core`.

    serve     the program: makes a broker, waits for signals, drains it, ends
    service   makes the parts and the threads that carry them
    loop      what a part is, and the thread that carries parts
    poll      what such a thread waits for, in one system call
    letters   what parts write to each other
    guard     says who may come in, where there are keys (ZAP), and counts who was refused
    complaints  what was sent to them in vain: counted and logged
    front     the part at the door (ROUTER front, PULL egress, ROUTER admin) around core.front.FrontMachine
    stage     a part per stage: workers and batches (ROUTER control, PULL intake, PUSH lanes) around StageMachine
    arenas    shared memory: made, accounted for, ended
    handles   where processes leave and get descriptors of a GPU's memory
    watch     notices at once that a process of this host has ended
    report    what the machines counted, as metrics and as status
    lately    of that the last seconds: rates, latencies, failures
    why       what they decided last, and why
    retired   what is kept of the metrics of processes that have gone

Each part owns its sockets and its machine. Between parts only mailboxes, and requests under the rule of
:mod:`engine.core.items`; so which thread carries which part is a few lines in ``service``, by ``[engine] threads``: a
thread each, or one for all.
"""
