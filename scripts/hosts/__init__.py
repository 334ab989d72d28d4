"""Hosts on one machine, and what happens to networks: for the tests in ``tests/hosts``, and for ``scripts/network``.

    switch     what carries frames between hosts, or delays, loses, resets them
    lab        hosts as namespaces at a switch, and the processes in them
    service    the stages that are served there
    load       requests at a fixed rate, each answer looked at
    watch      whom the broker holds ready, moment by moment
    scene      a deployment over four hosts
    rows       what is done to it, and what has to come of it

Needs root on Linux, and TAP devices; :func:`hosts.lab.impossible` says what is missing.
"""
