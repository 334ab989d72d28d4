"""How fast a service is, seen from outside: ``engine bench``.

    flags      the command line                       command    one measurement from beginning to end
    target     where requests go                      served     a deployment that is started to be measured
    payloads   what is sent
    http       requests written, answers read         load       the open-loop client
    figures    what came of a run                     highest    the highest rate within a goal, step by step
    versus     two services: is there a difference    told       all of it as a table, as data, as a picture
    bar        how far it is

The loop is open: requests leave at instants that are fixed beforehand, whether or not answers have come, and latency
counts from that instant. A client that waits for answers before it asks again asks a slow service less, and never sees
it queue (Tene's "coordinated omission").

``figures``, ``highest``, ``versus`` and ``told`` are pure.
"""
