"""``engine plan``: how many workers a goal takes, or what so many carry, by simulation; and whether a running
deployment does what was planned.

What is simulated is the file's own deployment: machines of the core, made of it as the broker makes them
(:mod:`engine.specs`), in :mod:`engine.simulation`, which does all of the work. Here is what that needs from outside:

    flags       the command line
    files       reading and writing, with what went wrong in words
    profiles    how long batches take: measured in a process of each stage's own, read, or asked of a running broker
    answer      the plan itself
    watched     what a deployment did between two looks at its metrics
    running     a plan beside a running deployment
    command     which of these is asked for
"""
