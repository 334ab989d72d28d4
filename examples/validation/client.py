"""Sends right and wrong requests to the validation example and shows the answers: `python client.py [URL]`."""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import msgpack

BERLIN, PARIS = {"lat": 52.52, "lon": 13.41}, {"lat": 48.86, "lon": 2.35}
QUOTES: tuple[Any, ...] = (
    {"kind": "parcel", "weight_kg": 2.0, "to": "FR"},
    {"kind": "parcel", "weight_kg": 2.0, "to": "FR", "size": {"width": 40, "height": 40, "depth": 50}},
    {"kind": "parcel", "weight_kg": "two", "to": "FR"},
    {"kind": "pigeon", "weight_kg": 2.0, "to": "FR"},
    {"kind": "parcel", "weight_kg": 2.0, "to": "France"},
    {"kind": "parcel", "to": "FR"},
    {"kind": "letter", "weight_kg": 2.0, "to": "FR"},
)
TRIPS: tuple[Any, ...] = (
    {"stops": [BERLIN, PARIS], "round_trip": True},
    {"stops": [BERLIN]},
    {"stops": [BERLIN, {"lat": 148.86, "lon": 2.35}]},
)


def post(url: str, body: bytes) -> tuple[int, bytes]:
    try:
        with urlopen(Request(url, body)) as response:
            return response.status, response.read()
    except HTTPError as error:
        return error.code, error.read()


def main() -> None:
    url = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    for quote in QUOTES:
        text = json.dumps(quote)
        status, answer = post(f"{url}/quote", text.encode())
        print(f"{text}\n  {status} {answer.decode()}")
    status, answer = post(f"{url}/quote", b'{"kind": "parcel"')
    print(f'{{"kind": "parcel"\n  {status} {answer.decode()}')
    for trip in TRIPS:
        status, answer = post(f"{url}/locate", msgpack.packb(trip))
        print(f"{trip}\n  {status} {msgpack.unpackb(answer) if status == 200 else answer.decode()}")


if __name__ == "__main__":
    main()
