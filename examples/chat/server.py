"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 --timeout 30000 ...]`."""

from service import Read, Write

from engine import Server

ROUTE = "/v1/chat/completions"

if __name__ == "__main__":
    server = Server()
    server.append_worker(Read, route=ROUTE)
    server.append_worker(Write, max_batch_size=16, max_wait_time=5, route=ROUTE)
    server.run()
