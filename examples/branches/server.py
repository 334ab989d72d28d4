"""The same deployment as stages.toml, described by calls: `python server.py`."""

from __future__ import annotations

from service import Advice, Letter, Offer, Orders, Price, Read, Reply, Sort, Stock

from engine import Runtime, Server

if __name__ == "__main__":
    sort, letter = Runtime(Sort, max_batch_size=32), Runtime(Letter, max_batch_size=32)
    orders, advice = Runtime(Orders, max_batch_size=16), Runtime(Advice, num=2, max_batch_size=8)
    read, reply = Runtime(Read, max_batch_size=32), Runtime(Reply, max_batch_size=32)
    price, stock = Runtime(Price, max_batch_size=32), Runtime(Stock, max_batch_size=32)
    offer = Runtime(Offer, max_batch_size=32)
    server = Server()
    ask = [sort, {"by": "subject", "of": {"order": orders}, "default": advice}, letter]
    server.register_runtime({"/ask": ask})
    server.register_runtime({"/messages": [read, {"each": "questions", "through": ask, "most": 20}, reply]})
    server.register_runtime({"/offers": [read, {"all": {"price": price, "stock": stock}}, offer]})
    server.run()
