"""The same deployment as stages.toml, described by calls: `python server.py`."""

from __future__ import annotations

from service import Advice, Letter, Orders, Sort

from engine import Runtime, Server

if __name__ == "__main__":
    sort, letter = Runtime(Sort, max_batch_size=32), Runtime(Letter, max_batch_size=32)
    orders, advice = Runtime(Orders, max_batch_size=16), Runtime(Advice, num=2, max_batch_size=8)
    server = Server()
    choice = {"by": "subject", "of": {"order": orders}, "default": advice}
    server.register_runtime({"/ask": [sort, choice, letter]})
    server.run()
