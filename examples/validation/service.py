"""Two services whose requests are checked before `forward` sees them, by the types it is annotated with.

`Quote` takes JSON and msgspec types, `Locate` MessagePack and pydantic models. The same types make the OpenAPI
document.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
import pydantic

from engine import ValidationError, Worker
from engine.mixin import TypedJSONMixin, TypedMsgPackMixin

PER_KG = {"letter": 4.0, "parcel": 2.5, "pallet": 0.8}
LIMIT_KG = {"letter": 0.5, "parcel": 31.5, "pallet": 1500.0}
EARTH_KM = 6371.0


class Size(msgspec.Struct, forbid_unknown_fields=True):
    """In centimetres."""

    width: Annotated[float, msgspec.Meta(gt=0)]
    height: Annotated[float, msgspec.Meta(gt=0)]
    depth: Annotated[float, msgspec.Meta(gt=0)]


class Shipment(msgspec.Struct, forbid_unknown_fields=True):
    kind: Literal["letter", "parcel", "pallet"]
    weight_kg: Annotated[float, msgspec.Meta(gt=0)]
    to: Annotated[str, msgspec.Meta(pattern="^[A-Z]{2}$")]  # a country, ISO 3166
    size: Size | None = None
    pieces: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1


class Price(msgspec.Struct):
    euros: float
    charged_kg: float


class Quote(TypedJSONMixin, Worker):
    """What it costs to send something."""

    example = Shipment(kind="parcel", weight_kg=2.0, to="DE")

    def forward(self, data: Shipment) -> Price:
        # What types cannot say is checked here, and answered the same way.
        if data.weight_kg > LIMIT_KG[data.kind]:
            raise ValidationError(f"a {data.kind} weighs at most {LIMIT_KG[data.kind]} kg")
        volume = data.size.width * data.size.height * data.size.depth / 5000 if data.size else 0.0  # kg, as carriers do
        charged = max(data.weight_kg, volume) * data.pieces
        return Price(round(3 + charged * PER_KG[data.kind] * (1 if data.to == "DE" else 2), 2), round(charged, 3))


class Place(pydantic.BaseModel):
    lat: float = pydantic.Field(ge=-90, le=90)
    lon: float = pydantic.Field(ge=-180, le=180)


class Trip(pydantic.BaseModel):
    stops: list[Place] = pydantic.Field(min_length=2)
    round_trip: bool = False


class Length(pydantic.BaseModel):
    km: float


class Locate(TypedMsgPackMixin, Worker):
    """How long a trip is, along great circles."""

    example = [Trip(stops=[Place(lat=0, lon=0), Place(lat=0, lon=1)])]

    def forward(self, data: list[Trip]) -> list[Length]:
        return [Length(km=round(self._length(trip), 1)) for trip in data]

    @staticmethod
    def _length(trip: Trip) -> float:
        stops = [*trip.stops, trip.stops[0]] if trip.round_trip else trip.stops
        return sum(map(haversine, stops[:-1], stops[1:]))


def haversine(start: Place, end: Place) -> float:
    """Kilometres along the great circle."""
    lat1, lat2 = math.radians(start.lat), math.radians(end.lat)
    lon = math.radians(end.lon - start.lon)
    half = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin(lon / 2) ** 2
    return 2 * EARTH_KM * math.asin(math.sqrt(half))
