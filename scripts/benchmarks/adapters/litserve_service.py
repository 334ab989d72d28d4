"""The work under LitServe: one stage, its only model. ``python litserve_service.py PORT``."""

import os
import sys
from typing import Any

import litserve

from benchmarks import plan, work


class Api(litserve.LitAPI):
    """Calls the work's ``forward``; what is around it is LitServe's."""

    def __init__(self, stage: plan.Stage, path: str) -> None:
        self.stage = stage
        super().__init__(
            max_batch_size=stage.max_batch_size, batch_timeout=(stage.max_wait_ms or 10) / 1000, api_path=path
        )

    def setup(self, device: str) -> None:
        self.work = getattr(work, self.stage.work)()

    # LitServe reads the annotation: any one makes the value a parameter of the query, none makes it the body's JSON.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        return request

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, x: Any) -> Any:
        return self.work.forward(x)

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> Any:
        return output


def main() -> None:
    """Serve the one stage of BENCH_SERVICE until a signal."""
    service = plan.Service.from_json(os.environ[plan.SERVICE_VARIABLE])
    (stage,) = service.stages
    server = litserve.LitServer(
        Api(stage, service.paths[0]),
        accelerator="cpu",
        devices=1,
        workers_per_device=stage.num,
        timeout=service.timeout_s,
    )
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
