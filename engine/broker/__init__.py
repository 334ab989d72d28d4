"""The broker process: threads around the pure machines of :mod:`engine.core`.

    service   makes the threads, waits for signals, drains, ends
    front     one thread: the door (ROUTER front, PULL egress, ROUTER admin) around core.front.FrontMachine
    stage     one thread per stage: workers and batches (ROUTER control, PULL intake, PUSH lanes) around StageMachine
    arenas    shared memory: made, accounted for, ended
    mailbox   how threads hand each other work
    watch     notices at once that a process of this host has ended
    report    what the machines counted, as metrics and as status

Each thread owns its sockets and its machine. Between threads only mailboxes, and the ledger of requests under the
rule of :mod:`engine.core.items`.
"""
