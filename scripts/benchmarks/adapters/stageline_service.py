"""The work under Stageline: only the base class is added. `plan.stages_toml` names these classes."""

from benchmarks import pages, work
from engine import SSEWorker, Worker


class Echo(work.Echo, Worker):
    """See benchmarks.work."""


class Events(work.Events, SSEWorker):
    """See benchmarks.work."""


class Nap(work.Nap, Worker):
    """See benchmarks.work."""


class Accelerator(work.Accelerator, Worker):
    """See benchmarks.work."""


class Brief(work.Brief, Worker):
    """See benchmarks.work."""


class Slow(work.Slow, Worker):
    """See benchmarks.work."""


class Flat(work.Flat, Worker):
    """See benchmarks.work."""


class Steep(work.Steep, Worker):
    """See benchmarks.work."""


class Padded(work.Padded, Worker):
    """See benchmarks.work."""


class Uneven(work.Uneven, Worker):
    """See benchmarks.work."""


class Make(work.Make, Worker):
    """See benchmarks.work."""


class Total(work.Total, Worker):
    """See benchmarks.work."""


class Embed(work.Embed, Worker):
    """See benchmarks.work."""


class Tokens(work.Tokens, Worker):
    """See benchmarks.work."""


class Launches(work.Launches, Worker):
    """See benchmarks.work."""


class Encode(work.Encode, Worker):
    """See benchmarks.work."""


class Find(pages.Find, Worker):
    """See benchmarks.pages."""


class Read(pages.Read, Worker):
    """See benchmarks.pages."""


class Join(pages.Join, Worker):
    """See benchmarks.pages."""


class DeviceFind(pages.DeviceFind, Worker):
    """See benchmarks.pages."""


class DeviceRead(pages.DeviceRead, Worker):
    """See benchmarks.pages."""


class DeviceJoin(pages.DeviceJoin, Worker):
    """See benchmarks.pages."""
