"""The same deployment from Python instead of stages.toml: `python server.py --compression [--port 8000 ...]`."""

from service import Name, Simple

from engine import Server

SIMPLE, COLOURS = "/v2/models/simple/infer", "/v2/models/colours/infer"

if __name__ == "__main__":
    server = Server()
    server.append_worker(Simple, max_batch_size=64, device="cpu", route=SIMPLE)
    server.append_worker(Name, max_batch_size=16, device="cpu", route=COLOURS)
    server.register_runtime({SIMPLE: [], COLOURS: []}, protocol="oip")
    server.run()
