"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 --max-request-size ...]`."""

from service import Decode, Detect

from engine import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode)
    server.append_worker(Detect, max_batch_size=32, max_batch_cost=240, max_wait_time=10)
    server.run()
