"""A deployment in time that is only counted: the broker's own machines, with workers that compute by a table.

What would take minutes takes a second, and needs neither models nor devices: it answers how many workers a goal takes
(``engine plan``), and in the project's tests what a rule does under load. Nothing here decides when a batch leaves, who
is let in or who is refused; all of that is asked of :mod:`engine.core`, and of nobody else. Pure: no clocks, sockets or
files, and everything is drawn from seeds, so that the same question has the same answer.

    world       the front and the stages of a broker, their workers, and what happens to them in its order
    arrivals    when requests come: independently, in bursts, or as they were recorded
    profile     how long batches take, by stage and size, and the file it is kept in
    figures     what came of a run: latencies, what was in time, how busy each stage was and what it waited for
    study       one service asked for one rate, several times, by different seeds
    search      the fewest workers for a rate, and the highest rate for so many workers
    table       what was found, as a table and as data
    picture     the same as SVG
"""
