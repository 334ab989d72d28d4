"""The benchmark: Stageline beside Mosec and LitServe, same worker code, one machine, one run. `scripts/bench` runs it.

From the bottom up; a module imports only what stands above it:

    stats        percentiles, medians, arrivals of a Poisson process; pure
    plan         a service to measure as a value, and its ``stages.toml``; pure
    result       rows, what a case and a target are, medians and ratios; pure
    table        results as text and Markdown; pure
    record       what workers wrote about their batches: read, and reduced to gaps and means
    work         the worker code, the same for every system; imports none of them
    pages        the same for the cases about branches: pages whose lines are read by themselves
    adapters/    one thin file per system around ``work``: the only files that import Mosec or LitServe
    load         open-loop client, a process of its own
    wrk          closed-loop client: wrk's command line and its report
    handover     two processes and shared memory: what passing an array can cost at best
    threads      one broker thread beside one per stage: what it costs and buys; a program of its own
    offline      the model in a plain loop: what serving it can reach at best
    processes    CPU time and memory of a system, by role
    ration       less than a CPU for a process, by a control group of its own
    systems      starts, waits for, and stops the systems
    nginx        the same for nginx in front of one of them
    grown        a second broker that comes by itself where one is full; a program of its own
    overload     more than a deployment can do, bursts, retries; a program of its own
    planned      what ``engine plan`` says beside what a deployment does; a program of its own
    fleet        a broker by tcp whose workers and frontend are played; a program of its own
    knock        strangers at the ports of one; a program of its own
    bench        what a case is given: systems in alternation, clients, progress
    closed       the run of every case that asks in a closed loop, in whichever way
    saturation   the run of every case that compares a busy worker with its plain loop
    cases/       one module per case
    floor        the least a server in Python costs, and wrk's own cost; a program of its own
    hops         what the sockets between the processes cost without any rule; a program of its own
    machine      what it ran on
    picture      results as SVG
    report       docs/benchmarks.md out of a JSON file
    __main__     the command line
"""
