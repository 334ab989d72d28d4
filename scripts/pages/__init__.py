"""Pages of docs/ that are made of the source, so that they cannot say anything else than it does.

    source     what a file says: its classes, signatures, defaults and docstrings, read and not imported
    worker     docs/worker.md: what a service may use of Worker, Context, the errors, Server and their like
    metrics    the tables of docs/metrics.md

``scripts/docs write`` writes them, tests/test_pages.py says when that was forgotten. docs/reference.md has a program of
its own, which comes with the package (engine/config/reference.py).
"""
