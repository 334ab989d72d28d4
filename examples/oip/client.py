"""Triton's own client against the two models: `python client.py [URL]`.

Asks what there is, then for sums, in bytes and in JSON, for the colours of an image, and for many at once.
"""

from __future__ import annotations

import asyncio
import sys
from urllib.parse import urlsplit

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

REQUESTS = 200


def inputs(*arrays: np.ndarray, binary: bool = True) -> list[triton.InferInput]:
    made = []
    for number, array in enumerate(arrays):
        one = triton.InferInput(f"INPUT{number}", list(array.shape), "INT32")
        made.append(one.set_data_from_numpy(array, binary_data=binary))
    return made


async def many(address: str) -> int:
    """Sums of many requests at once, each with numbers of its own; how many were right."""

    async def one(client: triton_aio.InferenceServerClient, number: int) -> bool:
        left = np.full((1 + number % 3, 16), number, np.int32)
        answer = await client.infer("simple", inputs(left, left))
        return bool((answer.as_numpy("OUTPUT0") == 2 * number).all())

    async with triton_aio.InferenceServerClient(address, conn_limit=100) as client:
        return sum(await asyncio.gather(*(one(client, number) for number in range(REQUESTS))))


def main() -> None:
    address = urlsplit(sys.argv[1]).netloc if len(sys.argv) > 1 else "127.0.0.1:8000"
    with triton.InferenceServerClient(address) as client:
        print(f"live {client.is_server_live()}, ready {client.is_server_ready()}")
        for one in client.get_model_metadata("colours")["inputs"]:
            print(f"colours takes {one['name']}: {one['datatype']} {one['shape']}")

        left, right = np.arange(16, dtype=np.int32).reshape(1, 16), np.ones((1, 16), np.int32)
        answer = client.infer("simple", inputs(left, right), request_id="sums")
        print(f"in bytes: {answer.as_numpy('OUTPUT0')[0, :4]}, {answer.as_numpy('OUTPUT1')[0, :4]}")
        wanted = [triton.InferRequestedOutput("OUTPUT0", binary_data=False)]
        answer = client.infer("simple", inputs(left, right, binary=False), outputs=wanted)
        print(f"in JSON: {answer.get_output('OUTPUT0')['data'][:4]}")

        image = np.zeros((64, 64, 3), np.uint8)
        image[:, 16:] = (250, 10, 20)
        pixels = triton.InferInput("pixels", list(image.shape), "UINT8").set_data_from_numpy(image)
        answer = client.infer("colours", [pixels], request_compression_algorithm="gzip")
        for name, share in zip(answer.as_numpy("name"), answer.as_numpy("share"), strict=True):
            print(f"{share:.0%} {name.decode()}")

        try:
            client.infer("simple", inputs(left))
        except InferenceServerException as error:
            print(f"refused: {error}")
    print(f"{asyncio.run(many(address))} of {REQUESTS} at once were right")


if __name__ == "__main__":
    main()
