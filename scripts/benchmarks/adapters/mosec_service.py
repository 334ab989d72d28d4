"""The work under Mosec: only the base class is added, and the service of BENCH_SERVICE built with its own calls."""

import os
from typing import Any

from mosec import Runtime, Server, SSEWorker, Worker

from benchmarks import pages, plan, work


class Echo(work.Echo, Worker):
    """See benchmarks.work."""


class Events(work.Events, SSEWorker):
    """See benchmarks.work."""


class Nap(work.Nap, Worker):
    """See benchmarks.work."""


class Accelerator(work.Accelerator, Worker):
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


class Picture(Worker):
    """A line's picture as the body of a request."""

    def deserialize(self, data: bytes) -> Any:
        import numpy as np

        return np.frombuffer(data, np.uint8).reshape(pages.HEIGHT, -1, 3)


class Read(pages.Read, Picture):
    """See benchmarks.pages."""


class Whole(pages.Whole, Worker):
    """See benchmarks.pages."""


class DeviceRead(pages.DeviceRead, Picture):
    """See benchmarks.pages."""


class DeviceWhole(pages.DeviceWhole, Worker):
    """See benchmarks.pages."""


def main() -> None:
    """Serve until a signal; flags are Mosec's own."""
    service = plan.Service.from_json(os.environ[plan.SERVICE_VARIABLE])
    chain = [
        Runtime(
            globals()[stage.work],
            num=stage.num,
            max_batch_size=stage.max_batch_size,
            max_wait_time=stage.max_wait_ms,
            timeout=int(service.timeout_s),
        )
        for stage in service.stages
    ]
    server = Server()
    server.register_runtime(dict.fromkeys(service.paths, chain))
    server.run()


if __name__ == "__main__":
    main()
