"""Stages whose types are declared: what the OpenAPI document and the page made of it are tested with."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, Field

from engine import SSEWorker, Worker
from stages.mixin import TypedJSONMixin, TypedMsgPackMixin


class Order(msgspec.Struct):
    """What is ordered."""

    name: str
    count: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1


class Price(BaseModel):
    """What it costs."""

    total: float = Field(ge=0)
    currency: str = "EUR"


class Take(TypedJSONMixin, Worker):
    """Price an order.

    Names are taken as they are, and **counts** from 1 to 100.
    """

    def forward(self, data: list[Order]) -> list[Order]:
        return data


class Sum(TypedJSONMixin, Worker):
    """Multiply."""

    def forward(self, data: Order) -> Price:
        return Price(total=2.5 * data.count)


class Model(TypedJSONMixin, Worker):
    """A model of pydantic's in, a dictionary out."""

    def forward(self, data: Price) -> dict[str, float]:
        return {data.currency: data.total}


class Packed(TypedMsgPackMixin, Worker):
    def forward(self, data: list[list[Order]]) -> list[int]:
        return [sum(order.count for order in orders) for orders in data]


class Untyped(Worker):
    req_mime_type = "application/x-anything"

    def forward(self, data: Any) -> Any:
        return data


class Count(SSEWorker):
    """Count up to a number."""

    def forward(self, data: int) -> None:
        for number in range(data):
            self.send_stream_event(str(number))
