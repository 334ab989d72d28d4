"""Requests whose answers are fetched later: kept in a file, so that no process that ends takes one along.

Where to look:

    rules      what becomes of a job: after an answer, and where its process has gone; pure
    store      the file (SQLite), which all processes of the frontend share
    runner     takes jobs that wait and has them computed, like any request
    described  a job as JSON, and in the OpenAPI document; pure
    hooks      telling others that a job is over
    resources  202 for who prefers that, and /jobs

A job is given to the broker like any request, of the lowest class. The process that has done so holds a *lease* on it,
and renews that; where it does not, another one takes the job over.
"""
