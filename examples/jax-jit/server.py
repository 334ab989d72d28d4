"""The same deployment from Python instead of stages.toml: `python server.py [--port 8000 ...]`."""

from service import Predict

from engine import Server

if __name__ == "__main__":
    server = Server()
    server.append_worker(Predict, batch_sizes=[1, 2, 4, 8, 16, 32], max_wait_time=5)
    server.run()
