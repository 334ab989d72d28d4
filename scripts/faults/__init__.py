"""Faults on purpose: a deployment under load is broken in every way of a table, and every answer is checked.

`scripts/chaos` and `scripts/soak` run it by hand, `tests/chaos` runs it small. From the bottom up; a module imports
only what stands above it:

    ledger       what was asked, what came back, what that amounts to, and whether it may; pure
    holdings     what processes hold, and which of it has grown; the judgement is pure
    work         the user code of the services, the same for every system; imports none of them
    client       open-loop client that knows the right answer to each request
    place        a service made on the spot: Stageline, or Mosec beside it
    scene        what a fault is given: the place, the client, and waiting for conditions
    harm         the faults: one function each
    hostile      the faults that are bytes: to the door, and to the sockets inside
    rows         the table: which fault, how often, what is allowed
    drill        one row on one place, and what it came to
    soak         rows again and again, and what has grown
    __main__     the command line
"""
