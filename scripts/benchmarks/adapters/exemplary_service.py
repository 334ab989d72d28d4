"""The same with an example of what they take, as a service should have: for ``engine plan``, which measures with it."""

from benchmarks import work
from benchmarks.adapters import stageline_service


class Accelerator(stageline_service.Accelerator):
    """See benchmarks.work."""

    example = {"x": 2}


class Brief(stageline_service.Brief):
    """See benchmarks.work."""

    example = {"x": 2}


class Slow(stageline_service.Slow):
    """See benchmarks.work."""

    example = {"x": 2}


class Embed(stageline_service.Embed):
    """See benchmarks.work."""

    example = {"text": work.TEXT}
