"""A service as it is written for Mosec, with `mosec` changed to `engine` in its imports and nothing else.

It reads a flag of its own when it is imported, as workers do, and finds a module through a folder it adds to sys.path.
"""

import argparse
import os
import sys

from engine import (
    ClientError,
    DecodingError,
    EncodingError,
    Runtime,
    Server,
    ServerError,
    SSEWorker,
    ValidationError,
    Worker,
    get_logger,
)
from engine.errors import MosecError, MosecTimeoutError
from engine.mixin import MsgpackMixin
from engine.runtime import Runtime as SameRuntime
from engine.server import Server as SameServer
from engine.worker import SSEWorker as SameSSEWorker
from engine.worker import Worker as SameWorker

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "found"))
from ported_words import GREETING

own = argparse.ArgumentParser()
own.add_argument("--factor", type=int, required=True)
options, _ = own.parse_known_args()

logger = get_logger()
assert (Runtime, Server, Worker, SSEWorker) == (SameRuntime, SameServer, SameWorker, SameSSEWorker)
assert issubclass(ClientError, MosecError)
assert not issubclass(MosecTimeoutError, Exception)


class Quota(MosecError):
    msg = "quota exceeded"


class Teapot(MosecError):
    status = 418
    prefix = "teapot"
    headers = {"x-tea": "green"}


ERRORS = {
    "client": ClientError,
    "decoding": DecodingError,
    "encoding": EncodingError,
    "server": ServerError,
    "validation": ValidationError,
    "quota": Quota,
    "teapot": Teapot,
    "value": ValueError,
}


class Check(Worker):
    """Raises what a request asks for, else multiplies."""

    def deserialize(self, data):
        return super().deserialize(data) if data else {"empty": True}

    def forward(self, data):
        if "error" in data:
            raise ERRORS[data["error"]](*data.get("args", []))
        if "x" in data:
            data["x"] *= options.factor
        return data


class CheckMany(Check):
    def forward(self, data):
        return [Check.forward(self, item) for item in data]


class Where(Worker):
    """Tells what its process was given."""

    def __init__(self):
        super().__init__()
        self.seen = {"worker_id": self.worker_id, "flavour": os.environ.get("FLAVOUR"), "has": "FLAVOUR" in os.environ}
        logger.info("%s from worker %d", GREETING, self.worker_id)

    def forward(self, data):
        return {**self.seen, "now": "FLAVOUR" in os.environ, "pid": os.getpid(), "device": self.device}


class Packed(MsgpackMixin, Worker):
    def forward(self, data):
        return {"got": data}


if __name__ == "__main__":
    server = Server()
    shared = Runtime(Where)
    server.register_runtime(
        {
            "/inference": [Runtime(Check)],
            "/batch": [Runtime(CheckMany, max_batch_size=4, max_wait_time=300, eager=False)],
            "/one": [Runtime(Where, num=2, env=[{"FLAVOUR": "sweet"}, {"FLAVOUR": "sour"}])],
            "/two": [shared],
            "/three": [shared],
            "/gpus": [Runtime(Where, num=4, device="auto")],
            "/hidden": [Runtime(Where, num=2, env=[{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}])],
            "/lone": [Runtime(CheckMany, max_batch_size=4, max_wait_time=5000)],
        }
    )
    server.append_worker(Packed, route=["/packed", "/packed/too"])
    server.run()
