"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 --timeout 10000 ...]`."""

from service import Classify

from engine import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(Classify, max_batch_size=64, max_wait_time=10)
    server.run()
